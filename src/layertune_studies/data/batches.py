"""Batches of a trial: each a function of the seed and the step alone, so that all methods see the same ones."""

from collections.abc import Callable
from typing import Any

import torch
from monai.transforms import (
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
)

from layertune_studies.config.study import Data
from layertune_studies.data.case import Batch, batch_of
from layertune_studies.data.cases import LabelledCases

__all__ = ["batches"]

TRAINING, META = 0, 1


def batches(
    drawn: LabelledCases, data: Data, *, task: str, batch: int, seed: int, device: torch.device
) -> tuple[Callable[[int], Batch], Callable[[int], Batch]]:
    """The training batch and the meta batch of a step.

    Args:
        drawn: the labelled cases of the seed.
        data: how they are augmented and cropped; meta batches are cropped only.
        task: ``"classification"`` or ``"segmentation"``.
        batch: cases in each.
        seed: of the trial.
        device: where they are wanted.
    """
    keys = ("image",) if task == "classification" else ("image", "label")
    crop = [] if data.patch is None else [RandSpatialCropd(keys, roi_size=data.patch, random_size=False)]
    change: list[Any] = _changes(keys) if data.augment else []

    def make(stream: int, cases: Any, transforms: list[Any]) -> Callable[[int], Batch]:
        def one(step: int) -> Batch:
            augment = Compose(transforms) if transforms else None
            image, label = batch_of(cases, batch, key=(seed, stream, step), augment=augment)
            return image.to(device), label.to(device)

        return one

    return make(TRAINING, drawn.train, [*crop, *change]), make(META, drawn.meta, crop)


def _changes(keys: tuple[str, ...]) -> list[Any]:
    return [
        RandFlipd(keys, prob=0.5, spatial_axis=0 if "label" in keys else 1),
        RandScaleIntensityd("image", prob=0.5, factors=0.2),
        RandShiftIntensityd("image", prob=0.5, offsets=0.2),
        RandGaussianNoised("image", prob=0.5, std=0.1),
    ]

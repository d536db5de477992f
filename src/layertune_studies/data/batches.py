"""Random batches, each of which depends on its key alone, so that all methods of a study see the same ones."""

from collections.abc import Callable, Sequence
from typing import Any

from monai.transforms import (
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
)

from layertune_studies.config.data import Augment, Data
from layertune_studies.data.case import Batch, Case, batch_of

__all__ = ["META", "PRETRAINING", "TRAINING", "augmentation", "batch_key", "batch_maker"]

TRAINING, META, PRETRAINING = 0, 1, 2


def batch_key(study_seed: int | None, seed: int, purpose: int, step: int) -> tuple[int, ...]:
    """Return the key of a batch.

    Args:
        study_seed: The seed of the study, or None where it has none.
        seed: The seed of the trial.
        purpose: ``TRAINING`` or ``META``, so that the two kinds of batches differ.
        step: The step of the trial, from 0.
    """
    return (seed, purpose, step) if study_seed is None else (study_seed, purpose, step, seed)


def batch_maker(
    cases: Sequence[Case],
    data: Data,
    *,
    count: int,
    key: Callable[[int], tuple[int, ...]],
    augment: bool,
    hold: int = 0,
) -> Callable[[int], Batch]:
    """Return a function that makes the batch of a step.

    Args:
        cases: The cases to choose from.
        data: The data section of the study, which says how batches are cropped and augmented.
        count: The number of cases in a batch.
        key: Returns the key of a step's batch.
        augment: Whether batches are augmented; without it they are cropped only.
        hold: Bytes of batches that stay in memory, for those who ask for the same steps again. Default: none.
    """
    transforms = _transforms(cases, data, augment=augment)
    held: dict[int, Batch] = {}
    free = hold

    def batch(step: int) -> Batch:
        nonlocal free
        if step in held:
            return held[step]
        new_batch = batch_of(cases, count, key=key(step), augment=transforms)
        free -= sum(tensor.nbytes for tensor in new_batch)
        if free > 0:
            held[step] = new_batch
        return new_batch

    return batch


def augmentation(strength: Augment, keys: Sequence[str] = ("image", "label")) -> list[Any]:
    """Return the transforms that a training image goes through, with its label map if it has one.

    Args:
        strength: How strong each change is.
        keys: ``("image",)`` for images without label maps, whose left and right lie along the second axis.
    """
    return [
        RandFlipd(keys, prob=strength.flip, spatial_axis=0 if "label" in keys else 1),
        RandScaleIntensityd("image", prob=0.5, factors=strength.contrast),
        RandShiftIntensityd("image", prob=0.5, offsets=strength.brightness),
        RandGaussianNoised("image", prob=0.5, std=strength.noise),
    ]


def _transforms(cases: Sequence[Case], data: Data, *, augment: bool) -> Compose | None:
    keys = ("image", "label") if cases[0].label.ndim else ("image",)
    steps = [] if data.patch is None else [RandSpatialCropd(keys, roi_size=data.patch, random_size=False)]
    if augment and data.augment:
        steps += augmentation(Augment() if data.augment is True else data.augment, keys)
    return Compose(steps) if steps else None

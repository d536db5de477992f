"""A case, and batches of cases."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.utils import convert_to_tensor
from torch import Tensor

__all__ = ["Batch", "Subject", "batch_of"]


Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Subject:
    """One case.

    Attributes:
        image: (1, x, y, z), mean 0 and variance 1.
        label: (1, x, y, z), 8-bit whole numbers: 0 background, 1 and 2 the two tissues.
    """

    image: Tensor
    label: Tensor


def batch_of(subjects: Sequence[Subject], count: int, *, key: tuple[int, ...], augment: Any = None) -> Batch:
    """The batch of a step: a function of its key alone, so that a resumed run goes on with the same one.

    Args:
        subjects: what is drawn from, each at most once a batch while there are enough.
        count: cases in the batch.
        key: the run's seed, what the batch is for, the step: whole numbers from 0.
        augment: a MONAI transform of ``{"image", "label"}``.

    Returns:
        Images (count, 1, x, y, z) and labels of the same shape.
    """
    rng = np.random.RandomState(_number(*key))
    chosen = [subjects[int(index)] for index in rng.choice(len(subjects), count, replace=count > len(subjects))]
    cases = [vars(subject) for subject in chosen]
    if augment is not None:
        augment.set_random_state(state=rng)
        with _without_metadata():
            cases = [augment(case) for case in cases]
    image, label = (torch.stack([_plain(case[key]) for case in cases]) for key in ("image", "label"))
    return image, label


@contextlib.contextmanager
def _without_metadata() -> Iterator[None]:
    """Small images are augmented in half the time when MONAI keeps no record of it.

    The switch is one for the process: other threads of it are without records meanwhile.
    """
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def _plain(array: Any) -> Tensor:
    """Without MONAI's metadata, which would slow every step down."""
    tensor: Tensor = convert_to_tensor(array, track_meta=False)
    return tensor


def _number(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])

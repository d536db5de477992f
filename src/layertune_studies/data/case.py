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

__all__ = ["Batch", "Case", "batch_of", "plain_tensor", "seed_from"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """An image with its label.

    Attributes:
        image: The image, channels first: (channels, height, width) or (channels, x, y, z).
        label: The class as a whole number without dimensions, or a map of classes of shape (1, x, y, z). Class 0 is
            the normal finding or the background.
    """

    image: Tensor
    label: Tensor


def batch_of(cases: Sequence[Case], count: int, *, key: tuple[int, ...], augment: Any = None) -> Batch:
    """Make a random batch that depends on its key alone, so that a resumed run sees the same batches.

    Args:
        cases: The cases to choose from. Each is chosen at most once a batch while there are enough of them.
        count: The number of cases in the batch.
        key: Whole numbers from 0 that seed all random choices, as in (seed of the run, purpose, step).
        augment: A MONAI transform of a dictionary with ``"image"`` and ``"label"``, or None.

    Returns:
        The images (count, channels, ...) and their labels, stacked.
    """
    rng = np.random.RandomState(seed_from(*key))
    drawn_cases = [cases[int(index)] for index in rng.choice(len(cases), count, replace=count > len(cases))]
    parts = [vars(case) for case in drawn_cases]
    if augment is not None:
        augment.set_random_state(state=rng)
        with _without_metadata():
            parts = [augment(part) for part in parts]
    image, label = (torch.stack([plain_tensor(part[key]) for part in parts]) for key in ("image", "label"))
    return image, label


def plain_tensor(array: Any) -> Tensor:
    """Convert an array to a tensor without MONAI's metadata, which would slow down every step."""
    tensor: Tensor = convert_to_tensor(array, track_meta=False)
    return tensor


def seed_from(*parts: int) -> int:
    """Compute one seed from several whole numbers.

    Example:
        >>> seed_from(0, 1) == seed_from(0, 1), seed_from(0, 1) == seed_from(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextlib.contextmanager
def _without_metadata() -> Iterator[None]:
    """Switch off MONAI's metadata, without which small images are augmented in half the time.

    The switch belongs to the whole process: other threads have no metadata either meanwhile.
    """
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)

"""Set and restore the random state of MONAI's transforms, which have their own generators."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from monai.transforms import Randomizable
from monai.utils import MAX_SEED

__all__ = ["kept_transforms", "random_transforms"]


def random_transforms(data: Any) -> list[Randomizable]:
    """Return all random transforms in a dataset, including those inside other transforms and datasets.

    Args:
        data: A dataset, a transform, or a list of them. The items of a dataset are not searched.

    Example:
        >>> from monai.data import Dataset
        >>> from monai.transforms import Compose, RandFlip, ScaleIntensity
        >>> pipeline = Compose([ScaleIntensity(), RandFlip()])
        >>> [type(found).__name__ for found in random_transforms(Dataset([1, 2], pipeline))]
        ['Compose', 'RandFlip']
    """
    transforms: list[Randomizable] = []
    _find(data, transforms, set())
    return transforms


def _find(value: Any, transforms: list[Randomizable], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Randomizable):
        transforms.append(value)
    if isinstance(value, list | tuple):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = [part for name, part in vars(value).items() if not name.startswith("__")]
    else:
        return
    for part in parts:
        _find(part, transforms, seen)


@contextmanager
def kept_transforms(transforms: list[Randomizable], seed: int) -> Iterator[None]:
    """Let transforms draw from a seed inside the block, and restore their generators after the block.

    Args:
        transforms: The transforms, from ``random_transforms``.
        seed: Seed of the generators, a whole number above 0.

    Example:
        >>> from monai.transforms import RandFlip
        >>> flip = RandFlip(prob=0.5).set_random_state(seed=0)
        >>> before = flip.R.get_state()[2]
        >>> with kept_transforms([flip], 1):
        ...     _ = flip.R.rand()
        >>> flip.R.get_state()[2] == before
        True
    """
    # All transforms share the generator `R` of the class, until a transform is seeded and gets its own.
    before = [(transform, vars(transform).get("R")) for transform in transforms]
    try:
        for number, transform in enumerate(transforms):
            transform.set_random_state(seed=(seed + number) % MAX_SEED)
        yield
    finally:
        for transform, generator in before:
            if generator is not None:
                transform.R = generator
            else:
                vars(transform).pop("R", None)

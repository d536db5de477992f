"""Find images that are near copies of each other, which must not lie in different parts of a split."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["near_copies"]

SIDE = 32  # coarse enough that noise, calipers and compression hardly change the correlation
ROWS = 256  # images that are compared with all others at once, which bounds the memory


def near_copies(images: Iterable[Tensor], correlation: float) -> list[int]:
    """Return for each image the number of the first image of its group of near copies.

    Two images are near copies if the correlation of their grey values, at 32 x 32 pixels, is above a limit. Near copies
    of near copies belong to the same group. An image of one single value is a near copy of none.

    Args:
        images: The images, channels first; their sizes may differ.
        correlation: The limit, between 0 and 1.

    Example:
        >>> image = torch.rand(1, 64, 48, generator=torch.Generator().manual_seed(0))
        >>> near_copies([image, 1 - image, 0.5 * image + 0.1], 0.97)
        [0, 1, 0]
    """
    thumbnails = torch.stack([_thumbnail(image) for image in images])
    first = list(range(len(thumbnails)))
    for start in range(0, len(thumbnails), ROWS):
        likeness = thumbnails[start : start + ROWS] @ thumbnails.T
        for row, other in (likeness > correlation).nonzero().tolist():
            one, two = sorted((_first_of(start + row, first), _first_of(other, first)))
            first[two] = one
    return [_first_of(number, first) for number in range(len(first))]


def _first_of(number: int, first: list[int]) -> int:
    while first[number] != number:
        number = first[number]
    return number


def _thumbnail(image: Tensor) -> Tensor:
    """Return the grey values of a small copy as a vector with mean 0 and length 1."""
    grey = image.float().mean(0)[None, None]
    small = interpolate(grey, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False).flatten()
    centred = small - small.mean()
    # An image of one grey value has length 0; its vector stays 0 and is a copy of nothing.
    unit: Tensor = centred / centred.norm().clamp_min(1e-6)
    return unit

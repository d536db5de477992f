"""The pneumonia study's images: chest X-rays of MedMNIST, and digits to pre-train on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from layertune_studies.errors import DataError

__all__ = ["FILE", "few", "xrays"]

FILE = "pneumoniamnist.npz"


def xrays(split: str, root: Path) -> Dataset[Any]:
    """Chest X-rays, 28 x 28, normal (0) or pneumonia (1), as MedMNIST's own dataset gives them.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``: 4,708, 524 and 624 images.
        root: folder that holds ``pneumoniamnist.npz``.

    Returns:
        Pairs of an image (1, 28, 28) in [-1, 1] and its label, a whole number.

    Raises:
        DataError: the file is not there.
    """
    from medmnist import PneumoniaMNIST

    if not (root / FILE).is_file():
        raise DataError(
            f"there is no {FILE} in {root}; get it from https://medmnist.com and give its folder with --data DIR or "
            "LAYERTUNE_DATA"
        )
    found: Dataset[Any] = PneumoniaMNIST(
        split=split,
        root=str(root),
        download=False,
        transform=_image,
        target_transform=lambda label: int(label[0]),
    )
    return found


def _image(picture: Any) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32))[None] / 127.5 - 1


def few(images: Any, count: int, *, seed: int) -> Subset[Any]:
    """As many images as somebody has labelled: drawn at random, each at most once.

    Raises:
        DataError: there are not as many.

    Example:
        >>> len(few(range(10), 3, seed=0))
        3
    """
    if count > len(images):
        raise DataError(f"{count} training images were asked for, and there are {len(images)}; ask for fewer")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return Subset(images, order[:count].tolist())

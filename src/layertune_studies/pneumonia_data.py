"""The pneumonia study's images: chest X-rays of MedMNIST, and brain slices of a template to pre-train on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import Dataset, Subset, TensorDataset

from layertune_studies.demo_data import DataError, tissue_maps

__all__ = ["FILE", "SIDE", "SLICE_CLASSES", "few", "slices", "xrays"]

FILE = "pneumoniamnist.npz"
SIDE = 28
PLANES, ZONES = 3, 4
SLICE_CLASSES = PLANES * ZONES
VOXELS = 56  # of the template, each side
REACH = (0.2, 0.8)  # which part of the template's sides slices are taken from


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


def slices(count: int, *, seed: int, maps: Tensor | None = None) -> TensorDataset:
    """Slices of a brain in random contrasts; the task is to tell their plane, and which of four zones they are from.

    Grey and white matter and cerebrospinal fluid of the MNI152 template, which nilearn brings, get random
    intensities; the slice is turned, scaled, shifted, and made noisy. Nothing has to be downloaded, the images are
    medical, and neither the organ, nor the modality, nor the task is that of the X-rays.

    Args:
        count: how many images.
        seed: fixes them.
        maps: shares of the three tissues, (3, x, y, z) with equal sides; by default the template's.

    Returns:
        Images (1, 28, 28) in [-1, 1] and their classes from 0 to 11.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = tissue_maps((VOXELS, VOXELS, VOXELS)) if maps is None else maps
    planes = torch.randint(PLANES, (count,), generator=generator)
    places = torch.empty(count).uniform_(*REACH, generator=generator)
    intensities = torch.rand(count, 3, 1, 1, generator=generator)
    where = zip((planes + 1).tolist(), (places * maps.shape[1]).long().tolist(), strict=True)
    cut = torch.stack([maps.select(axis, index) for axis, index in where])
    images = _moved((cut * intensities).sum(1, keepdim=True), generator)
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    zones = ((places - REACH[0]) / (REACH[1] - REACH[0]) * ZONES).long().clamp(0, ZONES - 1)
    return TensorDataset(images.clamp(0, 1) * 2 - 1, planes * ZONES + zones)


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by up to 0.3 rad, scaled by up to a fifth, shifted by up to a tenth of a side, and sampled at 28 x 28."""
    count = len(images)
    turn, scale, *shift = torch.empty(4, count).uniform_(-1, 1, generator=generator)
    cosine, sine = ((1 + 0.2 * scale) * wave(0.3 * turn) for wave in (torch.cos, torch.sin))
    rows = [cosine, -sine, 0.2 * shift[0], sine, cosine, 0.2 * shift[1]]
    grid = affine_grid(torch.stack(rows, 1).view(count, 2, 3), [count, 1, SIDE, SIDE], align_corners=False)
    return grid_sample(images, grid, align_corners=False)

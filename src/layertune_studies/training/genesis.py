"""Models Genesis' pre-training for studies: what a batch goes through, and the loss."""

import math
from collections.abc import Sequence

from monai.transforms import Compose, DeleteItemsd, RandSpatialCropd, ScaleIntensityRangePercentilesd
from torch import Tensor
from torch.nn.functional import mse_loss

from layertune_monai.genesis.pretext import genesis_pretext

__all__ = ["deformation", "restoration_loss"]

PUBLISHED_CUBE = 64 * 64 * 32  # voxels in which the pretext shuffles 10,000 windows


def deformation(size: Sequence[int], *, scaled: bool = True) -> Compose:
    """Return the transform that makes a training pair of a case: the deformed volume with the volume itself as label.

    As many windows are shuffled, for the size of the volume, as in the published cubes.

    Args:
        size: The voxels that are cropped at random from a volume that is larger.
        scaled: Whether the intensities lie in [0, 1] already; otherwise they are brought there.

    Example:
        >>> import torch
        >>> case = {"image": torch.rand(1, 16, 16, 16), "label": torch.zeros(1, 16, 16, 16)}
        >>> pair = deformation((16, 16, 8)).set_random_state(0)(case)
        >>> pair["image"].shape, pair["label"].shape
        (torch.Size([1, 16, 16, 8]), torch.Size([1, 16, 16, 8]))
    """
    windows = max(1, round(10_000 * math.prod(size) / PUBLISHED_CUBE))
    scale = [] if scaled else [ScaleIntensityRangePercentilesd("image", 1, 99, 0.0, 1.0, clip=True)]
    crop = RandSpatialCropd("image", size)
    return Compose([DeleteItemsd("label"), *scale, crop, genesis_pretext(target="label", windows=windows)])


def restoration_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of the restored volume; a sigmoid brings the network's output to [0, 1]."""
    return mse_loss(logits.sigmoid(), target.to(logits))

"""Models Genesis' pre-training for studies: what a batch goes through, and the loss."""

import math
from collections.abc import Sequence

from monai.transforms import Compose, DeleteItemsd, RandSpatialCropd, Transform
from torch import Tensor
from torch.nn.functional import mse_loss

from layertune_monai.genesis.pretext import genesis_pretext

__all__ = ["deformation", "restoration_loss"]

PUBLISHED_CUBE = 64 * 64 * 32  # voxels in which the pretext shuffles 10,000 windows


def deformation(size: Sequence[int], *first: Transform) -> Compose:
    """Make a training pair of a case: the deformed volume as its image, the original in the place of its label.

    As many windows are shuffled, for its size, as in the published cubes.

    Args:
        size: voxels that are cropped at random from a volume that is larger.
        *first: what the case goes through before; afterwards intensities lie in [0, 1].

    Example:
        >>> import torch
        >>> case = {"image": torch.rand(1, 16, 16, 16), "label": torch.zeros(1, 16, 16, 16)}
        >>> pair = deformation((16, 16, 8)).set_random_state(0)(case)
        >>> pair["image"].shape, pair["label"].shape
        (torch.Size([1, 16, 16, 8]), torch.Size([1, 16, 16, 8]))
    """
    windows = max(1, round(10_000 * math.prod(size) / PUBLISHED_CUBE))
    crop = RandSpatialCropd("image", size)
    return Compose([DeleteItemsd("label"), *first, crop, genesis_pretext(target="label", windows=windows)])


def restoration_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of the restored volume; a sigmoid brings the network's output to [0, 1]."""
    return mse_loss(logits.sigmoid(), target.to(logits))

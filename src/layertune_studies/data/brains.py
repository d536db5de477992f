"""Brains made from the MNI152 template, with the contrast of a T1- or a T2-weighted scan."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from monai.transforms import (
    Compose,
    NormalizeIntensity,
    Rand3DElastic,
    RandBiasField,
    RandGaussianSmooth,
    RandRicianNoise,
)
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from layertune_studies.data.case import Case, plain_tensor

__all__ = ["CONTRASTS", "SIZE", "Contrast", "make_brain", "tissue_maps"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Contrast:
    """The mean intensity of each tissue.

    Attributes:
        csf: Mean intensity of the cerebrospinal fluid.
        grey: Mean intensity of the grey matter.
        white: Mean intensity of the white matter.
        spread: Standard deviation of the means from brain to brain.
    """

    csf: float
    grey: float
    white: float
    spread: float = 0.05


SIZE = (40, 48, 40)
# Relative signal of a T1- and a T2-weighted spin echo image at 1.5 T.
CONTRASTS = {"t1": Contrast(csf=0.25, grey=0.6, white=0.9), "t2": Contrast(csf=1.0, grey=0.65, white=0.45)}
FIELD_OF_VIEW = (168, 196, 168)  # mm, around the template's brain of 144 x 183 x 156


@lru_cache(maxsize=2)
def tissue_maps(size: Shape) -> Tensor:
    """Return the template's maps of cerebrospinal fluid, grey and white matter.

    Args:
        size: Voxels of the maps along each axis.

    Returns:
        A tensor (3, x, y, z) of each tissue's share of the voxel, in [0, 1].
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    # At the resolution of the files nothing is resampled; averaging them gives true partial volumes.
    mask, grey, white = (
        torch.from_numpy(load(resolution=1).get_fdata(dtype=np.float32))
        for load in (load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template)
    )
    maps = torch.stack([(mask - grey - white).clamp(0, 1), grey.clamp(0, 1), white.clamp(0, 1)])
    box = mask.nonzero()
    middle = (box.amin(0) + box.amax(0)) // 2
    for axis, (centre, width) in enumerate(zip(middle.tolist(), FIELD_OF_VIEW, strict=True), 1):
        first = min(max(centre - width // 2, 0), maps.shape[axis] - width)
        maps = maps.narrow(axis, first, width)
    pooled: Tensor = adaptive_avg_pool3d(maps, size)
    return pooled


def make_brain(maps: Tensor, contrast: Contrast, *, seed: int) -> Case:
    """Deform the template and make an image of it.

    The shares of the tissues are deformed. Both the image (their mixture, so that a voxel of two tissues has an
    intensity between those of the two) and the label (the largest share) come from the deformed shares.

    Args:
        maps: The maps of ``tissue_maps``.
        contrast: The mean intensities of the tissues.
        seed: Seed of the deformation, the intensities and the noise; one seed gives one anatomy in every contrast.

    Returns:
        An image (1, x, y, z) with mean 0 and variance 1, and a label map of 8-bit whole numbers: 0 for the background,
        1 for grey and 2 for white matter.
    """
    rng = np.random.RandomState(seed)
    deformed = Rand3DElastic(
        sigma_range=(4, 6),
        magnitude_range=(100, 200),
        prob=1.0,
        rotate_range=(0.15, 0.15, 0.15),
        scale_range=(0.08, 0.08, 0.08),
        translate_range=(2, 2, 2),
        padding_mode="zeros",
    ).set_random_state(state=rng)(maps)
    shares = plain_tensor(deformed).clamp(0, 1)
    label = torch.stack([1 - shares[1] - shares[2], shares[1], shares[2]]).argmax(0, keepdim=True).to(torch.uint8)
    means = torch.tensor([contrast.csf, contrast.grey, contrast.white]) + contrast.spread * torch.from_numpy(
        rng.randn(3).astype(np.float32)
    )
    image = (shares * means[:, None, None, None]).sum(0, keepdim=True)
    scan = Compose(
        [
            RandBiasField(prob=1.0, coeff_range=(-0.25, 0.25)),
            RandGaussianSmooth(prob=0.5, sigma_x=(0.3, 0.7), sigma_y=(0.3, 0.7), sigma_z=(0.3, 0.7)),
            RandRicianNoise(prob=1.0, std=0.1, sample_std=True),
            NormalizeIntensity(),
        ]
    ).set_random_state(state=rng)
    return Case(plain_tensor(scan(image)), label)

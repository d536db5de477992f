"""The demo's subjects: brains made from the MNI152 template, or cases of the Medical Segmentation Decathlon."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensity,
    NormalizeIntensityd,
    Rand3DElastic,
    RandBiasField,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmooth,
    RandRicianNoise,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ResizeWithPadOrCropd,
    Transform,
)
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from layertune_studies.config.sets import MNI
from layertune_studies.data.case import Case, plain_tensor, seed_from
from layertune_studies.errors import DataError

__all__ = ["Cohort", "augmentation", "make_cohort", "tissues"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Cohort:
    """All cases of a demo.

    Attributes:
        source: cases of the source contrast, for pre-training.
        train: labelled target cases, one small set for each seed.
        validation: target cases that choose learning rates and frozen layers.
        test: target cases that are only reported on.
    """

    source: list[Case]
    train: list[list[Case]]
    validation: list[Case]
    test: list[Case]


@dataclass(frozen=True)
class Contrast:
    """Mean intensity of each tissue, and how far it varies from subject to subject."""

    csf: float
    grey: float
    white: float
    spread: float = 0.05


SIZE = (40, 48, 40)
# Relative signal of a T1- and a T2-weighted spin echo image at 1.5 T.
SOURCE = Contrast(csf=0.25, grey=0.6, white=0.9)
TARGET = Contrast(csf=1.0, grey=0.65, white=0.45)
CONTRASTS = {"t1": SOURCE, "t2": TARGET}
FIELD_OF_VIEW = (168, 196, 168)  # mm, around the template's brain of 144 x 183 x 156


def tissues(data: str) -> tuple[str, str]:
    """Names of the two foreground classes."""
    known = {MNI: ("grey matter", "white matter"), "Task04_Hippocampus": ("anterior", "posterior")}
    return known.get(data, ("class 1", "class 2"))


def make_cohort(
    data: str, *, root: Path | None, size: Shape, source: int, shots: int, seeds: int, held_out: int, seed: int
) -> Cohort:
    """Make or load all cases; the same arguments give the same cases.

    Args:
        data: ``"mni152"`` or a task of the Decathlon, for instance ``"Task04_Hippocampus"``.
        root: folder that holds the task's folder.
        size: voxels of a case, each a multiple of 8.
        source: cases of the source contrast.
        shots: labelled target cases a seed.
        seeds: how many sets of labelled cases.
        held_out: validation cases, and as many again by three for the test.
        seed: what the cases are drawn with.

    Raises:
        DataError: the data are not there, or too few.
    """
    counts = (source, shots * seeds, held_out, 3 * held_out)
    if data == MNI:
        subjects = _make_brains(size, source, sum(counts), seed)
    else:
        subjects = _load_cases(data, root, size, source, sum(counts), seed)
    ends = np.cumsum(counts)
    parts = [subjects[end - count : end] for count, end in zip(counts, ends, strict=True)]
    train = [parts[1][shots * index : shots * (index + 1)] for index in range(seeds)]
    return Cohort(parts[0], train, parts[2], parts[3])


@lru_cache(maxsize=2)
def tissue_maps(size: Shape) -> Tensor:
    """The template's maps of cerebrospinal fluid, grey and white matter, (3, x, y, z), each a share of the voxel."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    # At the resolution of the files nothing is resampled; averaging them makes true partial volumes.
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


def _make_brains(size: Shape, source: int, count: int, seed: int) -> list[Case]:
    maps = tissue_maps(size)
    return [
        make_brain(maps, SOURCE if index < source else TARGET, seed=seed_from(seed, index)) for index in range(count)
    ]


def make_brain(maps: Tensor, contrast: Contrast, *, seed: int) -> Case:
    """Deform the template and take an image of it.

    Tissue shares are deformed, and both the image (their mixture, so that a voxel of two tissues has an intensity
    between theirs) and the label (the larger share) come from the deformed shares.
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
    acquire = Compose(
        [
            RandBiasField(prob=1.0, coeff_range=(-0.25, 0.25)),
            RandGaussianSmooth(prob=0.5, sigma_x=(0.3, 0.7), sigma_y=(0.3, 0.7), sigma_z=(0.3, 0.7)),
            RandRicianNoise(prob=1.0, std=0.1, sample_std=True),
            NormalizeIntensity(),
        ]
    ).set_random_state(state=rng)
    return Case(plain_tensor(acquire(image)), label)


def _load_cases(task: str, root: Path | None, size: Shape, source: int, count: int, seed: int) -> list[Case]:
    from monai.apps import DecathlonDataset

    root = _task_root(task, root)
    load = Compose(
        [
            LoadImaged(keys=("image", "label")),
            EnsureChannelFirstd(keys=("image", "label")),
            NormalizeIntensityd(keys="image"),
            ResizeWithPadOrCropd(keys=("image", "label"), spatial_size=size),
        ]
    )
    cases = DecathlonDataset(
        root_dir=root, task=task, section="training", val_frac=0.0, cache_rate=0.0, download=False, transform=load
    )
    if len(cases) < count:
        raise DataError(
            f"the demo needs {count} labelled cases of {task}, and {root} holds {len(cases)}; ask for fewer"
        )
    order = np.random.RandomState(seed).permutation(len(cases))[:count]
    subjects = []
    for position, index in enumerate(order.tolist()):
        case = cases[index]
        image = plain_tensor(case["image"])
        label = plain_tensor(case["label"]).clamp(max=2).to(torch.uint8)
        subjects.append(Case(-image if position < source else image, label))
    return subjects


def _task_root(task: str, root: Path | None) -> Path:
    if root is not None and (root / task / "dataset.json").is_file():
        return root
    place = "no folder was given" if root is None else f"there is no {task}/dataset.json in {root}"
    raise DataError(
        f"{place}; get {task} from http://medicaldecathlon.com and give its parent folder with --root DIR or "
        f"LAYERTUNE_DATA, so that DIR/{task} holds dataset.json, imagesTr/ and labelsTr/"
    )


def augmentation() -> Transform:
    """What a training batch goes through: flips from left to right, contrast, brightness, noise."""
    keys = ("image", "label")
    return Compose(
        [
            RandFlipd(keys=keys, prob=0.5, spatial_axis=0),
            RandScaleIntensityd(keys="image", prob=0.5, factors=0.2),
            RandShiftIntensityd(keys="image", prob=0.5, offsets=0.2),
            RandGaussianNoised(keys="image", prob=0.5, std=0.1),
        ]
    )

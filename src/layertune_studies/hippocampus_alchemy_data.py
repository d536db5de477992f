"""The cases of the hippocampus study of Network Alchemy."""

from dataclasses import dataclass
from pathlib import Path

from monai.transforms import (
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Resized,
    ScaleIntensityRangePercentiles,
    Transform,
)
from monai.utils import convert_to_tensor
from torch import Tensor

from layertune_studies.config.sets import MNI
from layertune_studies.data.brains import make_cohort
from layertune_studies.data.case import Case

__all__ = ["Plan", "Sets", "augmentation", "make_sets"]

Shape = tuple[int, int, int]
FULL = (32, 48, 32)  # voxels of 1 mm, the middle of a case of the task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the results depend on; the defaults are made for less than an hour of one core of a CPU.

    Attributes:
        grid: voxels that a case is resampled to, each a multiple of 8; FULL shrinks to it.
        width: of the U-Net, 32 in the published one.
        unlabelled: cases that are pre-trained on, of each kind.
        shots: labelled cases to fine-tune on, others for each seed.
        held_out: validation cases, which choose rates; three times as many are test cases.
        seeds: how often everything but the pre-training is repeated.
        pretrain_steps: of the pretext task.
        supervised_steps: of the supervised pre-training that one of the ranked checkpoints comes from.
        steps: of a fine-tuning, and of a norm-only training.
        rank_steps: of each checkpoint in the ranking.
        batch: cases in a batch.
        lrs: of Adam, tried for each initialisation and seed.
        norm_lrs: of Adam, tried in the same way where norms alone train; the first is the ranking's.
        quantile: the share of kernels that starts afresh.
        weights: lambda of the penalty, the thesis' first.
        shares: of all gammas, clipped in the clip test.
        draws: random sets of gammas in the clip test.
    """

    grid: Shape = (24, 32, 24)
    width: int = 4
    unlabelled: int = 88
    shots: int = 8
    held_out: int = 16
    seeds: int = 3
    pretrain_steps: int = 600
    supervised_steps: int = 200
    steps: int = 120
    rank_steps: int = 40
    batch: int = 2
    lrs: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    norm_lrs: tuple[float, ...] = (1e-1, 3e-2)
    quantile: float = 0.1
    weights: tuple[float, float] = (1e-4, 1.0)
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    draws: int = 3


@dataclass(frozen=True)
class Sets:
    """All cases, with intensities in [0, 1].

    Attributes:
        same: cases of the task whose labels are not looked at.
        other: brains made from the MNI152 template, with the contrast of T2.
        inverted: the cases of ``same`` with inverted contrast, and their labels.
        train: labelled cases, one small set for each seed.
        validation: cases that choose rates.
        test: cases that are only reported on.
    """

    same: list[Case]
    other: list[Case]
    inverted: list[Case]
    train: list[list[Case]]
    validation: list[Case]
    test: list[Case]


def make_sets(plan: Plan, data: Path, *, task: str = "Task04_Hippocampus") -> Sets:
    """Load and make all cases; the same plan gives the same ones.

    Args:
        plan: of the study.
        data: folder that holds the task's folder.
        task: with at most two foreground classes.

    Raises:
        DataError: the cases are not there, or too few.
    """
    cohort = make_cohort(
        task,
        root=data,
        size=FULL,
        source=plan.unlabelled,
        shots=plan.shots,
        seeds=plan.seeds,
        held_out=plan.held_out,
        seed=0,
    )
    # Twice the grid, of which the pretext sees a part at a time. Without source cases they are all of T2's contrast.
    twice = (2 * plan.grid[0], 2 * plan.grid[1], 2 * plan.grid[2])
    (brains,) = make_cohort(
        MNI, root=None, size=twice, source=0, shots=plan.unlabelled, seeds=1, held_out=0, seed=0
    ).train
    # The cohort's source cases come with inverted contrast.
    same = [_resampled(Case(-case.image, case.label), plan.grid) for case in cohort.source]
    return Sets(
        same=same,
        other=[Case(_scaled(case.image), case.label) for case in brains],
        inverted=[Case(1 - case.image, case.label) for case in same],
        train=[[_resampled(case, plan.grid) for case in cases] for cases in cohort.train],
        validation=[_resampled(case, plan.grid) for case in cohort.validation],
        test=[_resampled(case, plan.grid) for case in cohort.test],
    )


def augmentation() -> Transform:
    """What a labelled case goes through: flips from left to right, contrast, brightness, noise.

    Weak noise: kernels that learned to find the pretext's noise have other batch statistics with it than without.
    """
    return Compose(
        [
            RandFlipd(("image", "label"), prob=0.5, spatial_axis=0),
            RandScaleIntensityd("image", prob=0.5, factors=0.2),
            RandShiftIntensityd("image", prob=0.5, offsets=0.1),
            RandGaussianNoised("image", prob=0.5, std=0.02),
        ]
    )


def _resampled(case: Case, grid: Shape) -> Case:
    resize: Transform = Resized(("image", "label"), grid, mode=("area", "nearest-exact"))
    smaller = resize(vars(case))
    return Case(_scaled(_plain(smaller["image"])), _plain(smaller["label"]))


def _scaled(image: Tensor) -> Tensor:
    return _plain(ScaleIntensityRangePercentiles(1, 99, 0.0, 1.0, clip=True)(image))


def _plain(array: object) -> Tensor:
    tensor: Tensor = convert_to_tensor(array, track_meta=False)
    return tensor

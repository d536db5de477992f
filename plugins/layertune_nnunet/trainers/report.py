"""What a user sees of learned rates and gammas beside nnU-Net's own log and figure."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from layertune import LRProfile
from layertune.plots.rates import plot_gammas, plot_profile

__all__ = ["FIGURE", "GAMMAS", "PROFILE", "draw", "draw_gammas", "gamma_line", "line"]

FIGURE = "learned_rates.png"
"""Beside ``progress.png``, after each epoch."""

GAMMAS = "gammas.png"
"""Beside it too, of the trainers that are about gammas."""

PROFILE = "learned_rates.json"
"""Beside it at the end of the training, for ``layertune.LRProfile.load``."""


def gamma_line(gammas: Mapping[str, Tensor], threshold: float | None = None) -> str:
    """Gammas of all norms in one line.

    Args:
        gammas: what ``layertune.gammas`` gave.
        threshold: also say how many lie below it.

    Example:
        >>> gamma_line({"norm": torch.tensor([-0.01, 0.5, 1.0, 1.5])}, 0.05)
        'gammas from -0.01 to 1.5, median 0.5; 1 of 4 (25.0 %) are redundant, |gamma| < 0.05'
    """
    values = torch.cat([gamma.flatten() for gamma in gammas.values()]).cpu()
    text = f"gammas from {values.min():.3g} to {values.max():.3g}, median {values.median():.3g}"
    if threshold is None:
        return text
    small = int((values.abs() < threshold).sum())
    share = f"{100 * small / len(values):.1f} %"
    return f"{text}; {small} of {len(values)} ({share}) are redundant, |gamma| < {threshold:g}"


def draw_gammas(named: Mapping[str, Mapping[str, Tensor]], threshold: float | None, folder: Path) -> None:
    """Draw how gammas are distributed.

    Args:
        named: what ``layertune.gammas`` gave, with the names for the legend.
        threshold: below which kernels count as redundant.
        folder: gets ``gammas.png``.

    Raises:
        AlchemyError: a gamma that is not finite.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        plot_gammas(named, threshold=threshold, ax=figure.subplots())
        figure.savefig(folder / GAMMAS, dpi=150)


def line(lrs: dict[str, float]) -> str:
    """Rates in one line.

    Example:
        >>> line({"stem": 0.01, "head": 0.0213})
        'Learning rates by layer: stem 0.01, head 0.0213'
    """
    return "Learning rates by layer: " + ", ".join(f"{layer} {rate:.3g}" for layer, rate in lrs.items())


def draw(profile: LRProfile, folder: Path) -> None:
    """Draw the rates over depth and over time.

    Raises:
        ProfileError: there is no rate above 0.
    """
    # nnU-Net sets seaborn's style, with letters of 25 points, for the whole process.
    with mpl.rc_context():
        mpl.rcdefaults()
        plot_profile(profile).savefig(folder / FIGURE, dpi=150)

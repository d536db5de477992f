"""What a user sees of the learned rates beside nnU-Net's own log and figure."""

from pathlib import Path

import matplotlib as mpl

from layertune import LRProfile
from layertune.plots import plot_profile

__all__ = ["FIGURE", "PROFILE", "draw", "line"]

FIGURE = "learned_rates.png"
"""Beside ``progress.png``, after each epoch."""

PROFILE = "learned_rates.json"
"""Beside it at the end of the training, for ``layertune.LRProfile.load``."""


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

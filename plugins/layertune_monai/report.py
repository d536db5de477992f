"""What a MONAI user sees of the learned rates: metrics of the engine, a figure and a profile."""

import warnings
from pathlib import Path
from typing import Any

from layertune import LRProfile, ProfileError
from layertune.plots import plot_profile

__all__ = ["publish_lrs", "write_profile"]


def publish_lrs(engine: Any, lrs: dict[str, float]) -> None:
    """Put the rates where ``StatsHandler``, ``TensorBoardStatsHandler`` and ``MLFlowHandler`` look for metrics."""
    engine.state.metrics.update({f"lr/{layer}": rate for layer, rate in lrs.items()})


def write_profile(profile: LRProfile, folder: Path) -> None:
    """Write ``learned_rates.json`` and ``learned_rates.png``; the folder is made.

    Args:
        profile: what was learned.
        folder: where the run's results lie.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profile.save(folder / "learned_rates.json")
    try:
        figure = plot_profile(profile)
    except ProfileError as error:  # every rate 0: a schedule that has reached its end
        warnings.warn(f"no figure of the learned rates was drawn: {error}", stacklevel=2)
        return
    figure.savefig(folder / "learned_rates.png", bbox_inches="tight", dpi=150)

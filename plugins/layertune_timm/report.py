"""What a user of timm's ``train.py`` sees of the learned rates: lines on the log, a profile and a figure."""

import logging
from pathlib import Path

from layertune import MetaLR, ProfileError
from layertune.plots.rates import plot_profile

__all__ = ["FIGURE", "PROFILE", "log_rates", "write_report"]

PROFILE = "layertune_profile.json"
FIGURE = "layertune_rates.png"

logger = logging.getLogger("layertune_timm")


def log_rates(metalr: MetaLR) -> None:
    """Log one line a layer: its rate now, and the factor that was learned on the schedule's rate."""
    if not metalr.history:
        logger.warning("No learning rate was learned: that takes two steps of the optimizer at least.")
        return
    profile = metalr.profile()
    width = max(map(len, profile.layers))
    logger.info("Learning rates after %d steps, and the factors learned:", metalr.steps)
    for layer, rate, factor in zip(profile.layers, profile.lrs[-1], profile.scales[-1], strict=True):
        logger.info("  %-*s  %.3e  x %.3g", width, layer, rate, factor)


def write_report(metalr: MetaLR, folder: Path) -> None:
    """Write the profile (``LRProfile.load`` reads it) and its figure into a folder; nothing if nothing was learned."""
    if not metalr.history:
        return
    profile = metalr.profile()
    profile.save(folder / PROFILE)
    try:
        plot_profile(profile).savefig(folder / FIGURE, bbox_inches="tight")
    except ProfileError as error:  # every rate 0: a schedule that has reached its end
        logger.warning("No figure of the learned rates was drawn: %s", error)
        return
    logger.info("Learned rates: %s, %s", folder / PROFILE, folder / FIGURE)

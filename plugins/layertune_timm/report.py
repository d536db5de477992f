"""The learned rates as lines of the log, for users of timm's ``train.py``."""

import logging
from pathlib import Path

from layertune import MetaLR
from layertune.hosts.report import FIGURE, PROFILE, write_report

__all__ = ["log_rates", "save_rates"]

logger = logging.getLogger("layertune_timm")


def log_rates(metalr: MetaLR) -> None:
    """Log one line per layer with its present rate and the factor that was learned on the schedule's rate.

    Args:
        metalr: The ``MetaLR`` that is attached to the optimizer of the training.
    """
    if not metalr.history:
        steps = metalr.settings.every + 1
        logger.warning(
            "No learning rate was learned: streaming MetaLR first learns at step %d of the optimizer.", steps
        )
        return
    profile = metalr.profile()
    width = max(map(len, profile.layers))
    logger.info("Learning rates after %d steps, and the factors learned:", metalr.steps)
    for layer, rate, factor in zip(profile.layers, profile.lrs[-1], profile.scales[-1], strict=True):
        logger.info("  %-*s  %.3e  x %.3g", width, layer, rate, factor)


def save_rates(metalr: MetaLR, folder: Path) -> None:
    """Write ``learned_rates.json`` and ``learned_rates.png``, if anything was learned.

    Args:
        metalr: The ``MetaLR`` that is attached to the optimizer of the training.
        folder: The folder that gets the two files.
    """
    if metalr.history and write_report(metalr.profile(), folder, warn=logger.warning):
        logger.info("Learned rates: %s, %s", folder / PROFILE, folder / FIGURE)

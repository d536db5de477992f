"""Lightning for studies: a Trainer on the CPU that shows and writes nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl

__all__ = ["quiet", "quiet_trainer"]

LOGGERS = ("pytorch_lightning", "lightning.pytorch")  # of Lightning's two packages, whichever was imported last
ADVICE = (
    "The '.*_dataloader' does not have many workers",
    "You defined a `validation_step` but have no",
    ".isinstance.treespec, LeafSpec.. is deprecated",  # Lightning 2.6 and torch 2.15
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave Lightning's notices and advice out, for the length of the block; other warnings are shown."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for advice in ADVICE:
            warnings.filterwarnings("ignore", message=advice)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def quiet_trainer(**options: Any) -> pl.Trainer:
    """A Trainer on the CPU that shows and writes nothing.

    Args:
        options: of the Trainer.

    Example:
        >>> with quiet():
        ...     trainer = quiet_trainer(max_steps=3)
        >>> trainer.max_steps, trainer.loggers
        (3, [])
    """
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )

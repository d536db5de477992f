"""What a user sees of the learned rates: scalars and a figure."""

import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from matplotlib.backend_bases import FigureCanvasBase

from layertune import LRProfile, MetaLR, ProfileError
from layertune.plots.rates import plot_profile

__all__ = ["check_figure", "log_lrs", "show_profile"]


def check_figure(file: str | Path | None) -> None:
    """Refuse what matplotlib cannot write, before the training and not after it.

    Raises:
        ProfileError: a format that it does not know.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if file is not None and Path(file).suffix.lstrip(".").lower() not in formats:
        raise ProfileError(f"matplotlib does not write figure={str(file)!r}; its name ends in one of {sorted(formats)}")


def log_lrs(trainer: pl.Trainer, metalr: MetaLR) -> None:
    """One scalar a layer to every logger, when the Trainer logs, as Lightning's ``LearningRateMonitor`` does.

    Reading the rates waits for the device, so it happens at no other step.
    """
    if trainer.loggers and trainer._logger_connector.should_update_logs:
        lrs = {f"lr/{layer}": rate for layer, rate in metalr.lrs.items()}
        for logger in trainer.loggers:
            logger.log_metrics(lrs, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def show_profile(trainer: pl.Trainer, profile: LRProfile, file: str | Path | None) -> None:
    """Draw the learned rates over depth and time, for the loggers that take figures, and into a file if one is named.

    Args:
        trainer: whose loggers.
        profile: what was learned.
        file: any format that matplotlib writes; its folder is made.
    """
    experiments: list[Any] = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    takers = [experiment for experiment in experiments if hasattr(experiment, "add_figure")]
    if not takers and file is None:
        return
    try:
        figure = plot_profile(profile)
    except ProfileError as error:  # every rate 0: a schedule that has reached its end
        warnings.warn(f"no figure of the learned rates was drawn: {error}", stacklevel=2)
        return
    for experiment in takers:
        experiment.add_figure("learned rates", figure, global_step=trainer.global_step, close=False)
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, bbox_inches="tight")

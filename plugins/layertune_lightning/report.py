"""What a Lightning user sees of the learned rates: scalars in the loggers, a profile and a figure."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from layertune import LRProfile, MetaLR, ProfileError
from layertune.hosts.report import draw_figure, write_figure, write_report

__all__ = ["check_figure", "log_lrs", "report_profile"]


def check_figure(file: str | Path | None) -> None:
    """Refuse the name of a figure that matplotlib cannot write, before the training and not after it.

    Args:
        file: The file for the figure, or ``None``.

    Raises:
        ProfileError: matplotlib does not know the format of this suffix.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if file is not None and Path(file).suffix.lstrip(".").lower() not in formats:
        raise ProfileError(f"matplotlib does not write figure={str(file)!r}; its name ends in one of {sorted(formats)}")


def log_lrs(trainer: pl.Trainer, metalr: MetaLR) -> None:
    """Log one scalar per layer to every logger, at the steps at which the Trainer logs.

    Lightning's ``LearningRateMonitor`` logs at the same steps. Reading the rates waits for the device, so it happens at
    no other step.
    """
    if trainer.loggers and trainer._logger_connector.should_update_logs:
        lrs = {f"lr/{layer}": rate for layer, rate in metalr.lrs.items()}
        for logger in trainer.loggers:
            logger.log_metrics(lrs, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def report_profile(
    trainer: pl.Trainer, profile: LRProfile, *, output_dir: str | Path | None, figure: str | Path | None
) -> None:
    """Show the learned rates at the end of a fit: to loggers that take figures, in a folder, and in a file.

    Args:
        trainer: The Trainer whose loggers receive the figure.
        profile: The rates that were learned.
        output_dir: The folder for ``learned_rates.json`` and ``learned_rates.png``, or ``None``.
        figure: One more file for the figure, or ``None``.
    """
    experiments: list[Any] = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    takers = [experiment for experiment in experiments if hasattr(experiment, "add_figure")]

    def add_to_loggers(figure: Figure) -> None:
        for experiment in takers:
            experiment.add_figure("learned rates", figure, global_step=trainer.global_step, close=False)

    if takers:
        draw_figure(profile, add_to_loggers)
    if output_dir is not None:
        write_report(profile, output_dir)
    if figure is not None:
        write_figure(profile, figure)

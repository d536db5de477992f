"""How far a study is, and how long it still takes."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial
from layertune_studies.training.budget import steps_of

__all__ = ["Meter", "study_progress"]


class Meter:
    """Adds up the steps of all trials for one progress bar.

    Args:
        progress: where it is shown.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bar = progress.add_task("", total=None)
        self.total = 0
        self.done = 0

    def expect(self, study: Study, trials: Sequence[Trial]) -> None:
        """Say how much more there is to do."""
        self.total += _steps(study, trials)
        self.progress.update(self.bar, total=self.total)

    def __call__(self, title: str, step: int) -> None:
        """Show where the present trial is; pre-training is not counted."""
        ahead = 0 if title == "pre-training" else step
        self.progress.update(self.bar, completed=self.done + ahead, description=title)

    def finish(self, study: Study, trial: Trial) -> None:
        """Count a trial that is done."""
        self.done += _steps(study, [trial])
        self.progress.update(self.bar, completed=self.done)

    def leave_out(self, study: Study, trials: Sequence[Trial]) -> None:
        """Trials that need not be run have no part in the time that is left."""
        self.total -= _steps(study, trials)
        self.progress.update(self.bar, total=self.total)


def _steps(study: Study, trials: Sequence[Trial]) -> int:
    return sum(steps_of(study, trial.method) for trial in trials)


def study_progress(console: Console) -> Progress:
    """A bar with the steps of all trials, the time that passed, and the time that is left."""
    return Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )

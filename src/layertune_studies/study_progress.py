"""How far a study is, and how long it still takes."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from layertune_studies.study_config import Study
from layertune_studies.study_training import steps_of
from layertune_studies.study_trial import Trial

__all__ = ["Meter", "study_progress"]


class Meter:
    """Adds up the steps of all trials for one progress bar.

    Args:
        progress: where it is shown.
        study: whose trials are counted.
    """

    def __init__(self, progress: Progress, study: Study) -> None:
        self.progress = progress
        self.study = study
        self.bar = progress.add_task("", total=None)
        self.done = 0

    def expect(self, trials: Sequence[Trial]) -> None:
        """Say how much there is to do."""
        self.progress.update(self.bar, total=self._steps(trials))

    def __call__(self, title: str, step: int) -> None:
        """Show where the present trial is; pre-training is not counted."""
        ahead = 0 if title == "pre-training" else step
        self.progress.update(self.bar, completed=self.done + ahead, description=title)

    def finish(self, *trials: Trial) -> None:
        """Count trials that are done."""
        self.done += self._steps(trials)
        self.progress.update(self.bar, completed=self.done)

    def leave_out(self, trials: Sequence[Trial]) -> None:
        """Trials that need not be run have no part in the time that is left."""
        (task,) = (task for task in self.progress.tasks if task.id == self.bar)
        self.progress.update(self.bar, total=(task.total or 0) - self._steps(trials))

    def _steps(self, trials: Sequence[Trial]) -> int:
        return sum(steps_of(self.study, trial.method) for trial in trials)


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

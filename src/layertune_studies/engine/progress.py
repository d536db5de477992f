"""The progress bar of a study."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial
from layertune_studies.training.budget import steps_of

__all__ = ["Meter", "study_progress"]


class Meter:
    """Adds up the steps of all trials for one progress bar.

    Args:
        progress: The display of the bar.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bar = progress.add_task("", total=None)
        self.total = 0
        self.done = 0

    def expect(self, study: Study, trials: Sequence[Trial]) -> None:
        """Add trials to the total."""
        self.total += _steps(study, trials)
        self.progress.update(self.bar, total=self.total)

    def __call__(self, title: str, step: int) -> None:
        """Show the steps of the present trial; those of pre-training are not counted."""
        ahead = 0 if title == "pre-training" else step
        self.progress.update(self.bar, completed=self.done + ahead, description=title)

    def finish(self, study: Study, trial: Trial) -> None:
        """Count a finished trial."""
        self.done += _steps(study, [trial])
        self.progress.update(self.bar, completed=self.done)

    def leave_out(self, study: Study, trials: Sequence[Trial]) -> None:
        """Take trials that need not be run out of the total."""
        self.total -= _steps(study, trials)
        self.progress.update(self.bar, total=self.total)


def _steps(study: Study, trials: Sequence[Trial]) -> int:
    return sum(steps_of(study, trial.method) for trial in trials)


def study_progress(console: Console) -> Progress:
    """Return a bar with the steps of all trials, the elapsed time and the remaining time."""
    return Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        _Steps(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class _Steps(ProgressColumn):
    """Show the steps done and their total, once there is a total."""

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        return Text(f"{task.completed:g}/{task.total:g} steps" if task.total else "")

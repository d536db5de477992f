"""What the demo found: one row a method."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from layertune_studies.demo_methods import Method
from layertune_studies.demo_options import DemoOptions
from layertune_studies.demo_train import Scores
from layertune_studies.demo_work import Outcome, Piece

__all__ = ["DemoResult", "Row", "Trial", "make_row"]


@dataclass(frozen=True)
class Trial:
    """A method on one seed.

    Attributes:
        setting: label of the chosen candidate.
        lr: its learning rate at the start.
        piece: the training.
        outcome: on the test subjects.
        passes: forward and backward passes of all its candidates together.
    """

    setting: str
    lr: float
    piece: Piece
    outcome: Outcome
    passes: int


@dataclass(frozen=True)
class Row:
    """A method, over all seeds.

    Attributes:
        key: of the method.
        title: of the method.
        scores: of each seed.
        settings: chosen by the validation subjects of each seed.
        passes: forward and backward passes of a step.
        total_passes: of one seed, with the search for the setting.
        step_ms: median time of a step in milliseconds; ``None`` where nothing was trained.
    """

    key: str
    title: str
    scores: tuple[Scores, ...]
    settings: tuple[str, ...] = ()
    passes: int = 0
    total_passes: int = 0
    step_ms: float | None = None

    def cells(self) -> list[str]:
        """As texts: title, Dice, PPV, sensitivity, settings, passes a step, passes in all, time a step."""
        numbers = [_spread([getattr(score, name) for score in self.scores]) for name in ("dice", "ppv", "sensitivity")]
        if self.step_ms is None:
            return [self.title, *numbers, "", "", "", ""]
        settings = ", ".join(dict.fromkeys(self.settings))
        return [self.title, *numbers, settings, str(self.passes), str(self.total_passes), f"{self.step_ms:.0f} ms"]


HEADINGS = ("Method", "Dice", "PPV", "Sensitivity", "Setting", "Passes a step", "Passes in all", "Time a step")
# The columns of the terminal's table, with a shorter heading where there is one.
SHORT = {"Method": "", "Dice": "", "PPV": "", "Sensitivity": "", "Passes in all": "Passes", "Time a step": "Step"}


@dataclass(frozen=True)
class DemoResult:
    """All that the demo found.

    Attributes:
        options: it ran with.
        rows: the pre-trained network as it is, then the methods.
        report: the page.
        profile: the learned rates of the exact method on the first seed.
        seconds: since this start; work finished before it is not counted.
    """

    options: DemoOptions
    rows: tuple[Row, ...]
    report: Path
    profile: Path
    seconds: float

    def table(self) -> Table:
        """For a terminal of 80 columns."""
        spread = " ± standard deviation over seeds" if self.options.seeds > 1 else ""
        table = Table(
            title=f"Test subjects: mean over both tissues{spread}",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 0, 0, 1),
        )
        for heading, short in SHORT.items():
            table.add_column(short or heading, justify="left" if heading == "Method" else "right", no_wrap=True)
        for row in self.rows:
            cells = dict(zip(HEADINGS, row.cells(), strict=True))
            table.add_row(*(cells[heading] for heading in SHORT))
        return table

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "options": self.options.identity(),
            "methods": [asdict(row) for row in self.rows],
            "report": str(self.report),
            "profile": str(self.profile),
            "seconds": round(self.seconds, 1),
        }


def make_row(method: Method, trials: Sequence[Trial]) -> Row:
    """Sum up a method's trials, one a seed."""
    return Row(
        key=method.key,
        title=method.title,
        scores=tuple(trial.outcome.scores for trial in trials),
        settings=tuple(trial.setting for trial in trials),
        passes=method.passes,
        total_passes=trials[0].passes,
        step_ms=1000 * median(seconds for trial in trials for seconds in trial.piece.log.seconds),
    )


def _spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several values.

    Example:
        >>> _spread([0.8, 0.82]), _spread([0.8])
        ('0.810±0.014', '0.800')
    """
    spread = f"±{stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"

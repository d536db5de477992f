"""The columns of a study's table: their headings, their cells for a reader, and their full numbers for CSV."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from layertune_studies.config.study import Study
from layertune_studies.results.statistics import interval
from layertune_studies.results.table import Row

__all__ = ["Column", "columns_of"]

CellText = Callable[[Row], str]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: The heading above the column, in every format but CSV.
        text: A function from a row to its cell in Markdown, LaTeX and the page. ``None`` leaves the column to CSV.
        full: The columns of CSV, each with a function from a row to its cell. Default: the heading and the text.
    """

    heading: str
    text: CellText | None
    full: Mapping[str, CellText] = field(default_factory=dict)

    @property
    def csv(self) -> Mapping[str, CellText]:
        """The columns of CSV, by their headings."""
        return self.full or ({self.heading: self.text} if self.text is not None else {})


def columns_of(study: Study, rows: Sequence[Row]) -> list[Column]:
    """Return the columns of a table, from left to right. A new column is added here.

    Args:
        study: The study, which names the metrics.
        rows: The rows of the table. There is a column of checkpoints only if a row has one.
    """
    first = study.metrics[0]
    checkpoints = [Column("checkpoint", lambda row: row.checkpoint)] if any(row.checkpoint for row in rows) else []
    return [
        Column("method", lambda row: row.method),
        *checkpoints,
        Column("labelled", lambda row: str(row.labelled)),
        *(_metric_column(metric) for metric in study.metrics),
        Column("p", lambda row: _number(row.p, ".3f"), {"p": lambda row: _number(row.p, ".6g")}),
        Column(
            "passes",
            lambda row: _number(row.passes or None, ",.0f"),
            {"passes": lambda row: _number(row.passes or None, "g")},
        ),
        Column("settings", None, {"settings": lambda row: "; ".join(row.settings)}),
        Column("seeds", lambda row: str(len(row.values[first]))),
    ]


def _metric_column(metric: str) -> Column:
    """Return the column of a metric: the median over seeds and, in brackets, its bootstrap interval, in percent."""

    def text(row: Row) -> str:
        median = f"{100 * float(np.median(row.values[metric])):.1f}"
        if len(row.values[metric]) == 1:
            return median  # one seed has no interval
        low, high = interval(row.values[metric])
        return f"{median} [{100 * low:.1f}, {100 * high:.1f}]"

    return Column(
        metric,
        text,
        {
            f"{metric}_median": lambda row: f"{float(np.median(row.values[metric])):.6g}",
            f"{metric}_low": lambda row: f"{interval(row.values[metric])[0]:.6g}",
            f"{metric}_high": lambda row: f"{interval(row.values[metric])[1]:.6g}",
        },
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

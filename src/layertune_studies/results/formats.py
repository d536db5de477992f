"""How a study's table is written: Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np

from layertune_studies.config.study import Study
from layertune_studies.results.statistics import interval
from layertune_studies.results.table import Row

__all__ = ["markdown", "render", "table_cells", "write"]

Format = Literal["markdown", "latex", "csv"]
Cells = list[list[str]]


def render(study: Study, rows: Sequence[Row], kind: Format) -> str:
    """Write a table as Markdown, LaTeX or CSV: medians over seeds and, in brackets, their bootstrap intervals.

    Args:
        study: The study, which names the metrics.
        rows: The rows of the table.
        kind: The format. CSV has full numbers in columns of their own.
    """
    if kind == "csv":
        return _csv(study, rows)
    return write(table_cells(study, rows), kind)


def write(cells: Sequence[Sequence[str]], kind: Format) -> str:
    """Write a table, whose headings come first, as Markdown, LaTeX or CSV."""
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(cells)
        return text.getvalue()
    return markdown(cells) if kind == "markdown" else _latex(cells)


def table_cells(study: Study, rows: Sequence[Row]) -> Cells:
    """Return the cells of a table, the headings first."""
    start = ["checkpoint"] if any(row.checkpoint for row in rows) else []
    cells = [["method", *start, "labelled", *study.metrics, "p", "passes", "seeds"]]
    for row in rows:
        scores = [_score(row.values[metric]) for metric in study.metrics]
        p = "" if row.p is None else f"{row.p:.3f}"
        passes = f"{row.passes:,.0f}" if row.passes else ""
        checkpoint = [row.checkpoint] if start else []
        cells.append(
            [row.method, *checkpoint, str(row.labelled), *scores, p, passes, str(len(row.values[study.metrics[0]]))]
        )
    return cells


def _score(values: Sequence[float]) -> str:
    median = f"{100 * float(np.median(values)):.1f}"
    if len(values) == 1:
        return median  # of one seed there is no interval
    low, high = interval(values)
    return f"{median} [{100 * low:.1f}, {100 * high:.1f}]"


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Write cells as a Markdown table.

    Args:
        cells: The headings, then the rows; all columns but the first are aligned to the right.

    Example:
        >>> print(markdown([["method", "dice"], ["flat", "80.1"]]), end="")
        | method | dice |
        | --- | ---: |
        | flat | 80.1 |
    """
    heading, *rows = cells
    rule = ["---", *("---:" for _ in heading[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *rows)) + "\n"


def _latex(cells: Sequence[Sequence[str]]) -> str:
    heading, *rows = (" & ".join(map(_escaped, line)) + r" \\" for line in cells)
    columns = "l" + "r" * (len(cells[0]) - 1)
    body = [r"\toprule", heading, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text)


def _csv(study: Study, rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    start = ["checkpoint"] if any(row.checkpoint for row in rows) else []
    ends = [f"{metric}_{end}" for metric in study.metrics for end in ("median", "low", "high")]
    writer.writerow(["method", *start, "labelled", *ends, "p", "passes", "settings", "seeds"])
    for row in rows:
        numbers = [(float(np.median(row.values[m])), *interval(row.values[m])) for m in study.metrics]
        flat = [f"{number:.6g}" for three in numbers for number in three]
        p = "" if row.p is None else f"{row.p:.6g}"
        passes = f"{row.passes:g}" if row.passes else ""
        checkpoint = [row.checkpoint] if start else []
        writer.writerow(
            [
                row.method,
                *checkpoint,
                row.labelled,
                *flat,
                p,
                passes,
                "; ".join(row.settings),
                len(row.values[study.metrics[0]]),
            ]
        )
    return text.getvalue()

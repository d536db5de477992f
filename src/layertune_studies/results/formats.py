"""How a study's table is written: Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Literal

from layertune_studies.config.study import Study
from layertune_studies.results.columns import columns_of
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
    return write(_full_cells(study, rows) if kind == "csv" else table_cells(study, rows), kind)


def write(cells: Sequence[Sequence[str]], kind: Format) -> str:
    """Write a table, whose headings come first, as Markdown, LaTeX or CSV."""
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(cells)
        return text.getvalue()
    return markdown(cells) if kind == "markdown" else _latex(cells)


def table_cells(study: Study, rows: Sequence[Row]) -> Cells:
    """Return the cells of a table for a reader, the headings first."""
    columns = [(column.heading, column.text) for column in columns_of(study, rows) if column.text is not None]
    return [[heading for heading, _ in columns], *([text(row) for _, text in columns] for row in rows)]


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


def _full_cells(study: Study, rows: Sequence[Row]) -> Cells:
    """Return the cells of a table with full numbers, the headings first."""
    columns = [pair for column in columns_of(study, rows) for pair in column.csv.items()]
    return [[heading for heading, _ in columns], *([text(row) for _, text in columns] for row in rows)]

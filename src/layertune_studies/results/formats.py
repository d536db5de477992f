"""How a study's table is written: Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from layertune_studies.config.study import Study
from layertune_studies.results.statistics import interval
from layertune_studies.results.table import Row

__all__ = ["render"]

Format = Literal["markdown", "latex", "csv"]


def render(study: Study, rows: Sequence[Row], kind: Format) -> str:
    """A table as Markdown, LaTeX or CSV: medians over seeds and, in brackets, their bootstrap intervals.

    Args:
        study: names the metrics.
        rows: of the table.
        kind: how it is written; CSV has full numbers in columns of their own.
    """
    if kind == "csv":
        return _csv(study, rows)
    heading = ["method", "labelled", *study.metrics, "p", "passes", "seeds"]
    cells = [
        [
            row.method,
            str(row.labelled),
            *(_cell(row.values[metric]) for metric in study.metrics),
            "" if row.p is None else f"{row.p:.3f}",
            f"{row.passes:,.0f}" if row.passes else "",
            str(len(row.values[study.metrics[0]])),
        ]
        for row in rows
    ]
    return _markdown(heading, cells) if kind == "markdown" else _latex(heading, cells)


def _cell(values: Sequence[float]) -> str:
    median = f"{100 * float(np.median(values)):.1f}"
    if len(values) == 1:
        return median  # of one seed there is no interval
    low, high = interval(values)
    return f"{median} [{100 * low:.1f}, {100 * high:.1f}]"


def _markdown(heading: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in heading[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *cells)) + "\n"


def _latex(heading: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    escape: Callable[[str], str] = lambda text: "".join(  # noqa: E731 - one expression, used thrice
        f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text
    )
    lines = [" & ".join(map(escape, line)) + r" \\" for line in (heading, *cells)]
    columns = "l" + "r" * (len(heading) - 1)
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"]) + "\n"


def _csv(study: Study, rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{metric}_{end}" for metric in study.metrics for end in ("median", "low", "high")]
    writer.writerow(["method", "labelled", *ends, "p", "passes", "settings", "seeds"])
    for row in rows:
        numbers = [(float(np.median(row.values[m])), *interval(row.values[m])) for m in study.metrics]
        flat = [f"{number:.6g}" for three in numbers for number in three]
        p = "" if row.p is None else f"{row.p:.6g}"
        seeds = len(row.values[study.metrics[0]])
        writer.writerow(
            [
                row.method,
                row.labelled,
                *flat,
                p,
                f"{row.passes:g}" if row.passes else "",
                "; ".join(row.settings),
                seeds,
            ]
        )
    return text.getvalue()

"""`layertune study page`: the results of a study on one HTML page that opens offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from layertune_studies.config.sets import SETS
from layertune_studies.engine.context import StudyContext
from layertune_studies.results.formats import table_cells
from layertune_studies.results.page_figures import page_figures
from layertune_studies.results.table import ChosenTrial, RowKey, chosen_trials, make_rows, setting_of

__all__ = ["Page", "study_page", "write_page"]


@dataclass(frozen=True)
class Page:
    """The texts and the main table of a page.

    Attributes:
        title: The heading of the page.
        about: Paragraphs above the table.
        headings: The headings of the table.
        rows: The cells of the table, row by row.
        notes: Paragraphs below the table.
    """

    title: str
    about: Sequence[str]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def study_page(context: StudyContext) -> Page:
    """Return the page of any study, with the table of ``layertune study table``."""
    study = context.study
    headings, *rows = table_cells(study, make_rows(study, chosen_trials(context)))
    about = [text for text in (study.paper, SETS[study.data.set].page()) if text]
    note = (
        f"Medians over {study.seeds} seeds in percent, with their 95 % bootstrap intervals; p is that of a paired "
        "permutation test against the best baseline, and passes count the search for a method's settings."
    )
    return Page(study.title or study.name, about, headings, rows, [note])


def write_page(context: StudyContext, page: Page, path: Path) -> None:
    """Write the page of a study, with all figures that the study has results for.

    Args:
        context: The study with its results.
        page: The texts and the main table.
        path: The file to write.

    Raises:
        StudyError: No trial is finished.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("layertune_studies.results").joinpath("page.html").read_text(encoding="utf-8")
    )
    study, chosen = context.study, chosen_trials(context)
    text = template.render(
        page=page,
        part=study.report,
        seeds=_seed_cells(context, chosen),
        figures=page_figures(context, chosen),
        file=yaml.safe_dump(study.model_dump(mode="json", exclude_unset=True), sort_keys=False, width=120),
    )
    context.store.write(path, text)


def _seed_cells(context: StudyContext, chosen: Mapping[RowKey, Sequence[ChosenTrial]]) -> list[list[str]]:
    """Return what each method chose and reached on each seed, below the headings."""
    study, metric = context.study, context.study.metrics[0]
    cells = [["Method", "Labelled", "Seed", "Setting", f"{metric}, validation", f"{metric}, {study.report}"]]
    for key, trials in chosen.items():
        for one in trials:
            scores = (f"{float(one.result[part][metric]):.4f}" for part in ("validation", study.report))
            setting = setting_of(one.trial)
            cells.append([key.label, str(key.labelled), str(one.trial.seed), setting, *scores])
    return cells

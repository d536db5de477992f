"""The commands ``layertune study ...``: run a study from its file, and show its results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from layertune.cli.terminal import Json, print_json, show
from layertune_studies.commands.extra import studies

if TYPE_CHECKING:
    from layertune_studies.config.study import Study
    from layertune_studies.engine.context import Executor, StudyContext

__all__ = ["study"]

study = typer.Typer(no_args_is_help=True, help="Run the papers' experiments, or your own, from a file.")

Config = Annotated[Path, typer.Argument(help="A study's YAML file, as in configs/studies.")]
Out = Annotated[Path | None, typer.Option(help="Folder for results. [layertune-studies/NAME]")]
Root = Annotated[Path | None, typer.Option(envvar="LAYERTUNE_DATA", help="Folder that holds the data sets' folders.")]
Labelled = Annotated[str | None, typer.Option(help="Labelled cases: a number, or all. [the study's first]")]


@study.command("run")
def run(
    config: Config,
    out: Out = None,
    root: Root = None,
    ray: Annotated[
        str | None, typer.Option(help="Run on Ray: auto for a cluster at hand or one made here, or its address.")
    ] = None,
) -> None:
    """Run a study, or continue it: a trial that has a result is not run again."""
    with studies():
        from layertune_studies.config.study import load_study
        from layertune_studies.engine.run import run_study

        loaded = load_study(config)
        store = run_study(loaded, _folder(loaded, out), root, executor=_executor(ray))
    show(Text(f"Results: {store.folder}; see `layertune study table {config}`"))


@study.command("table")
def table(
    config: Config,
    out: Out = None,
    root: Root = None,
    form: Annotated[
        Literal["markdown", "latex", "csv"], typer.Option("--format", help="How the table is written.")
    ] = "markdown",
    starts: Annotated[
        bool, typer.Option("--starts", help="Each method by its starting rate, its worst and best.")
    ] = False,
    content: Annotated[
        Literal["scores", "gammas", "clip", "ranks"],
        typer.Option("--of", help="What is shown: scores, or a table of Network Alchemy."),
    ] = "scores",
    labelled: Labelled = None,
    as_json: Json = False,
) -> None:
    """Show medians over seeds with bootstrap intervals, and paired tests against the best baseline."""
    with studies():
        from layertune_studies.results.alchemy import ALCHEMY_TABLES
        from layertune_studies.results.formats import render, write
        from layertune_studies.results.table import chosen_trials, is_whole, labelled_of, make_rows, start_rows

        context = _context(config, out, root)
        count = labelled_of(context.study, _count(labelled))
        if content != "scores":
            cells = ALCHEMY_TABLES[content](context, count)
            values, text = [dict(zip(cells[0], row, strict=True)) for row in cells[1:]], write(cells, form)
        else:
            rows = start_rows(context) if starts else make_rows(context.study, chosen_trials(context))
            if not starts and not is_whole(context, rows):
                typer.echo(f"Unfinished: `layertune study run {config}` goes on; what is there is shown.", err=True)
            values, text = [vars(row) for row in rows], render(context.study, rows, form)
    if as_json:
        print_json(values)
    else:
        typer.echo(text, nl=False)


@study.command("page")
def page(
    config: Config,
    file: Annotated[Path | None, typer.Option(help="File of the page. [page.html in the folder of results]")] = None,
    out: Out = None,
    root: Root = None,
) -> None:
    """Write all results and figures of a study on one HTML page that opens offline."""
    with studies():
        from layertune_studies.results.page import study_page, write_page

        context = _context(config, out, root)
        path = file or context.store.folder / "page.html"
        write_page(context, study_page(context), path)
    show(Text(f"Page: {path}"))


@study.command("plot")
def plot(
    config: Config,
    figure: Annotated[
        str,
        typer.Argument(
            help="heat-map, rates-over-depth, rates-over-time, network, starting-rates, feature-maps, gammas, "
            "gammas-after, clip or ranks."
        ),
    ],
    file: Annotated[Path | None, typer.Option(help="File of the figure. [FIGURE.pdf in the folder of results]")] = None,
    labelled: Labelled = None,
    out: Out = None,
    root: Root = None,
) -> None:
    """Draw one of the papers' figures."""
    with studies():
        from layertune_studies.results.figures import plot_study

        context = _context(config, out, root)
        path = file or context.store.folder / f"{figure}.pdf"
        plot_study(context, figure, path, labelled=_count(labelled))
    show(Text(f"Figure: {path}"))


def _executor(ray: str | None) -> "Executor | None":
    if ray is None:
        return None
    from layertune_studies.engine.ray import OnRay  # Ray is an extra of its own

    return OnRay(ray)


def _count(labelled: str | None) -> int | str | None:
    return int(labelled) if labelled is not None and labelled.isdigit() else labelled


def _folder(loaded: "Study", out: Path | None) -> Path:
    return out or Path("layertune-studies") / loaded.name


def _context(config: Path, out: Path | None, root: Path | None) -> "StudyContext":
    from layertune_studies.config.study import load_study
    from layertune_studies.engine.context import StudyContext
    from layertune_studies.engine.store import StudyStore
    from layertune_studies.errors import FolderError

    loaded = load_study(config)
    store = StudyStore(_folder(loaded, out))
    if not any(store.results.glob("*.json")):
        raise FolderError(
            f"there are no results of {loaded.name} in {store.folder}; run `layertune study run {config}` first, or "
            "give the folder of its results with --out"
        )
    return StudyContext(loaded, root, store)

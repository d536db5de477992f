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
    as_json: Json = False,
) -> None:
    """Show medians over seeds with bootstrap intervals, and paired tests against the best baseline."""
    with studies():
        from layertune_studies.results.formats import render
        from layertune_studies.results.table import chosen_trials, is_whole, make_rows, start_rows

        context = _context(config, out, root)
        if starts:
            rows = start_rows(context)
        else:
            rows = make_rows(context.study, chosen_trials(context))
            if not is_whole(context.study, rows):
                typer.echo(f"Unfinished: `layertune study run {config}` goes on; what is there is shown.", err=True)
        text = render(context.study, rows, form)
    if as_json:
        print_json([vars(row) for row in rows])
    else:
        typer.echo(text, nl=False)


@study.command("plot")
def plot(
    config: Config,
    figure: Annotated[
        str, typer.Argument(help="heat-map, rates-over-depth, rates-over-time, starting-rates or feature-maps.")
    ],
    file: Annotated[Path | None, typer.Option(help="Of the figure. [FIGURE.pdf in the folder of results]")] = None,
    labelled: Annotated[str | None, typer.Option(help="Labelled cases: a number, or all. [the study's first]")] = None,
    out: Out = None,
    root: Root = None,
) -> None:
    """Draw one of the papers' figures."""
    with studies():
        from layertune_studies.results.figures import plot_study

        context = _context(config, out, root)
        count = int(labelled) if labelled is not None and labelled.isdigit() else labelled
        path = plot_study(context, figure, file or context.store.folder / f"{figure}.pdf", labelled=count)
    show(Text(f"Figure: {path}"))


def _executor(ray: str | None) -> "Executor | None":
    if ray is None:
        return None
    from layertune_studies.engine.ray import OnRay  # Ray is an extra of its own

    return OnRay(ray)


def _folder(loaded: "Study", out: Path | None) -> Path:
    return out or Path("layertune-studies") / loaded.name


def _context(config: Path, out: Path | None, root: Path | None) -> "StudyContext":
    from layertune_studies.config.study import load_study
    from layertune_studies.engine.context import StudyContext
    from layertune_studies.engine.store import StudyStore

    loaded = load_study(config)
    return StudyContext(loaded, root, StudyStore(_folder(loaded, out)))

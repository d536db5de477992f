"""The command line's studies: `layertune study`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from layertune.cli.terminal import Json, print_json, show
from layertune_studies.commands.extra import studies, study_module

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
    """Run a study, or go on with it: a trial whose result is there is not run again."""
    module = study_module("engine.run")
    with studies():
        found = study_module("config.study").load_study(config)
        executor = None if ray is None else study_module("engine.ray").OnRay(ray)
        store = module.run_study(found, _folder(found, out), root, executor=executor)
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
    module = study_module("results.table")
    with studies():
        context = _context(config, out, root)
        if starts:
            rows = module.start_rows(context)
        else:
            rows = module.make_rows(context.study, module.chosen_trials(context))
            if not module.is_whole(context.study, rows):
                typer.echo(f"Unfinished: `layertune study run {config}` goes on; what is there is shown.", err=True)
        text = study_module("results.formats").render(context.study, rows, form)
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
    module = study_module("results.figures")
    with studies():
        context = _context(config, out, root)
        count = int(labelled) if labelled is not None and labelled.isdigit() else labelled
        path = module.plot_study(context, figure, file or context.store.folder / f"{figure}.pdf", labelled=count)
    show(Text(f"Figure: {path}"))


def _folder(found: Any, out: Path | None) -> Path:
    return out or Path("layertune-studies") / str(found.name)


def _context(config: Path, out: Path | None, root: Path | None) -> Any:
    found = study_module("config.study").load_study(config)
    store = study_module("engine.store").StudyStore(_folder(found, out))
    return study_module("engine.context").StudyContext(found, root, store)

"""The command line's demo: ``layertune demo``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from layertune.cli.terminal import Json, print_json, show
from layertune.hosts.networks import parse_shape
from layertune_studies.commands.extra import studies

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; an interrupted run goes on from it. [layertune-demo]")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="mni152, or a task of the Medical Segmentation Decathlon. [mni152]")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(envvar="LAYERTUNE_DATA", help="Folder that holds the task's folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="What subjects, weights and batches are drawn with. [0]")] = None,
    seeds: Annotated[int | None, typer.Option(help="How often fine-tuning is repeated. [2]")] = None,
    size: Annotated[str | None, typer.Option(help="Voxels of a case, each a multiple of 8. [40,48,40]")] = None,
    source: Annotated[int | None, typer.Option(help="Cases to pre-train on. [10]")] = None,
    shots: Annotated[int | None, typer.Option(help="Labelled cases to fine-tune on. [3]")] = None,
    pretrain_steps: Annotated[int | None, typer.Option(help="Steps of pre-training. [120]")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each fine-tuning. [60]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. [1]")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a small U-Net to another contrast: flat learning rates against learned ones."""
    given = {name: value for name, value in locals().items() if name != "as_json" and value is not None}
    if size is not None:
        given["size"] = _size(size)
    with studies():
        from layertune_studies.config.demo import DemoOptions
        from layertune_studies.results.demo import run_demo

        result = run_demo(DemoOptions(**given))
    if as_json:
        print_json(result.as_dict())
        return
    show(result.table())
    show(Text(f"Report: {result.report}"))


def _size(text: str) -> tuple[int, ...]:
    size = parse_shape(text)
    if len(size) != 3:
        raise typer.BadParameter(f"{text!r} is not three numbers, as in 40,48,40", param_hint="--size")
    return size

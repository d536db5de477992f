"""The command line's part for MONAI: `layertune monai`; imports without MONAI."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from layertune.cli.terminal import Json, hosts_to_stderr, print_json, show
from layertune.hosts.plugin import import_host
from layertune.policies.by_name import METHODS
from layertune_monai.plugin import PLUGIN

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="layertune in MONAI.")


@app.callback()
def _options() -> None:
    pass


@app.command("bundle")
def put_bundle(
    folder: Annotated[Path, typer.Argument(help="Is made; may be there if it is empty.")], as_json: Json = False
) -> None:
    """Put the bundle metalr_unet into a folder: a 3D U-Net that learns its learning rates, for Decathlon tasks."""
    import_host(PLUGIN)
    with hosts_to_stderr():
        from layertune_monai.bundle.folder import write_bundle

        written = write_bundle(folder)
    if as_json:
        print_json({"bundle": str(written)})
        return
    show(Text(f"The bundle lies in {written}; docs/README.md says what it takes. To train, there:"))
    typer.echo("python -m monai.bundle run --config_file configs/train.json --data_dir DIR --task Task04_Hippocampus")


@app.command()
def adapt(
    bundle: Annotated[Path, typer.Argument(help="Root of anybody's bundle: the folder that holds configs/.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "metalr",
    hyper_lr: Annotated[float | None, typer.Option(help="Step size of learned rates. [what suits the rule]")] = None,
    rule: Annotated[str, typer.Option(help="joint, cosine, proportional or additive.")] = "joint",
    every: Annotated[int, typer.Option(help="Learn rates at each k-th step.")] = 1,
    depth: Annotated[str, typer.Option(help="I1 (order of execution) or I2 (resolution level of the U).")] = "I1",
    m: Annotated[
        int | None, typer.Option(help="Shallowest frozen depth of bidirectional. [a third, in the middle]")
    ] = None,
    n: Annotated[
        int | None, typer.Option(help="Deepest frozen depth of bidirectional. [a third, in the middle]")
    ] = None,
    first: Annotated[int | None, typer.Option(help="Shallowest tuned depth of layer_wise. [deeper half]")] = None,
    weights: Annotated[Path | None, typer.Option(help="What to start from. [models/model.pt]")] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="Configuration that trains, relative to BUNDLE; may be given again.")
    ] = None,
    trainer: Annotated[str | None, typer.Option(help="The trainer's id, where it is not found.")] = None,
    as_json: Json = False,
) -> None:
    """Write configs/layertune.json beside a bundle's train.json: it fine-tunes by a method, and changes nothing."""
    import_host(PLUGIN)
    with hosts_to_stderr():
        from layertune_monai.bundle.adapt import Method, adapt

        chosen = Method(name=method, hyper_lr=hyper_lr, rule=rule, every=every, depth=depth, m=m, n=n, first=first)
        done = adapt(bundle, chosen, config=tuple(config or ()), trainer=trainer, weights=weights)
    if as_json:
        print_json({"files": done.files, "config_files": done.config_files, "notes": done.notes})
        return
    for note in done.notes:
        show(Text(note))
    show(Text(f"Now, in {bundle}:"))
    for files in done.config_files:
        typer.echo(f'python -m monai.bundle run --config_file "{files}"')

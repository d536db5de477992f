"""The commands ``layertune monai``. This module imports without MONAI."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from layertune.cli.terminal import Json, hosts_to_stderr, print_json, show
from layertune.hosts.plugin import import_host
from layertune.policies.by_name import METHODS
from layertune_monai.plugin import PLUGIN

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Bundles for MONAI.")


@app.callback()
def _options() -> None:
    pass


@app.command("bundle")
def write(
    folder: Annotated[Path, typer.Argument(help="A folder that is empty or does not exist yet.")], as_json: Json = False
) -> None:
    """Write the bundle metalr_unet: a 3D U-Net for Decathlon tasks that learns its learning rates."""
    import_host(PLUGIN)
    with hosts_to_stderr():
        from layertune_monai.bundle.folder import write_bundle

        written = write_bundle(folder)
    if as_json:
        print_json({"bundle": str(written)})
        return
    show(Text(f"The bundle is in {written}; its docs/README.md lists all commands. To train, run there:"))
    typer.echo("python -m monai.bundle run --config_file configs/train.json --data_dir DIR --task Task04_Hippocampus")


@app.command()
def adapt(
    bundle: Annotated[Path, typer.Argument(help="The root of a bundle: the folder that holds configs/.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "metalr",
    hyper_lr: Annotated[
        float | None, typer.Option(help="Step size of learned rates. [default: the one of the rule]")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="joint, cosine, proportional or additive. [default: MetaLR's]")
    ] = None,
    every: Annotated[int | None, typer.Option(help="Learn rates at each k-th step. [default: MetaLR's]")] = None,
    depth: Annotated[
        str | None, typer.Option(help="I1 (order of execution) or I2 (resolution level of the U). [default: I1]")
    ] = None,
    m: Annotated[
        int | None, typer.Option(help="Shallowest frozen depth of bidirectional. [default: the middle third is frozen]")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Deepest frozen depth of bidirectional.")] = None,
    first: Annotated[
        int | None, typer.Option(help="Shallowest trained depth of layer_wise. [default: the deeper half is trained]")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights to start from. [default: models/model.pt]")] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="Configuration that trains, relative to BUNDLE; may be repeated.")
    ] = None,
    trainer: Annotated[str | None, typer.Option(help="Id of the trainer, where it is not found.")] = None,
    as_json: Json = False,
) -> None:
    """Write configs/layertune.json into a bundle, which fine-tunes it by a method. No other file is changed."""
    import_host(PLUGIN)
    with hosts_to_stderr():
        from layertune_monai.bundle.adapt import adapt as write_adaptation
        from layertune_monai.bundle.methods import Method

        options = Method(method=method, hyper_lr=hyper_lr, rule=rule, every=every, depth=depth, m=m, n=n, first=first)
        adaptation = write_adaptation(bundle, options, config=tuple(config or ()), trainer=trainer, weights=weights)
    if as_json:
        print_json({"files": adaptation.files, "config_files": adaptation.config_files, "notes": adaptation.notes})
        return
    for note in adaptation.notes:
        show(Text(note))
    show(Text(f"To train, run in {bundle}:"))
    for files in adaptation.config_files:
        typer.echo(f'python -m monai.bundle run --config_file "{files}"')

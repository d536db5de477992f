"""The app of the command line, with the commands that need no plug-in."""

import importlib.metadata
from functools import partial
from typing import Annotated, Any, cast, get_args

import typer
from rich.text import Text
from typer.core import TyperGroup

from layertune.cli.gammas import show_gammas
from layertune.cli.network_options import Arguments, InputShape, network_of
from layertune.cli.terminal import Json, cell, hosts_to_stderr, print_json, print_table, printable, show
from layertune.errors import LayertuneError
from layertune.hosts.networks import NamedNetwork
from layertune.hosts.plugin import host_commands, plugins
from layertune.layers.layer import Granularity, LayerMap
from layertune.layers.layer_map import map_layers
from layertune.layers.names import named_parameters

__all__ = ["app"]


class OneLineErrors(TyperGroup):
    """Answer a user's mistake with one line on the standard error stream and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except LayertuneError as error:
            typer.echo(f"layertune: {printable(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="layertune",
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Layer-wise fine-tuning for people who adapt pre-trained networks to medical images.",
)
app.command("gammas")(show_gammas)
for name, commands in host_commands().items():
    if isinstance(commands, typer.Typer):
        app.add_typer(commands, name=name)
    else:
        app.command(name)(commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("layertune"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="A model of timm, a network of MONAI, or module:factory of your own.")],
    shape: InputShape = None,
    arg: Arguments = None,
    granularity: Annotated[str, typer.Option(help="module, block or stage.")] = "block",
    as_json: Json = False,
) -> None:
    """Show the layers of a network with their parameters and depths; nothing is computed or downloaded."""
    if granularity not in get_args(Granularity):
        raise typer.BadParameter(f"{granularity!r} is not module, block or stage", param_hint="--granularity")
    with hosts_to_stderr():
        named = network_of(model, shape, arg)
        map_at = partial(map_layers, named.network, named.example, granularity=cast(Granularity, granularity))
        i1 = map_at(depth="I1")
        i2 = map_at(depth="I2") if i1.has_decoder else None
    result = _describe_layers(model, named, i1, i2)
    if as_json:
        print_json(result)
    else:
        _print_layers(result)


def _describe_layers(model: str, named: NamedNetwork, i1: LayerMap, i2: LayerMap | None) -> dict[str, Any]:
    sizes = {name: parameter.numel() for name, parameter in named_parameters(named.network).items()}
    depth_i2 = {layer.name: layer.depth for layer in i2 or ()}
    return {
        "model": model,
        "arguments": dict(named.arguments),
        "input": list(named.example.shape),
        "granularity": i1.granularity,
        "layers": [
            {
                "name": layer.name,
                "role": layer.role,
                "level": layer.level,
                "depth_I1": layer.depth,
                "depth_I2": depth_i2.get(layer.name),
                "count": sum(sizes[name] for name in layer.parameters),
                "parameters": list(layer.parameters),
            }
            for layer in i1
        ],
        "unused": list(i1.unused),
    }


def _print_layers(result: dict[str, Any]) -> None:
    keys = {"name": "Layer", "role": "Role", "level": "Level", "depth_I1": "I1", "depth_I2": "I2"}
    rows = [[*(cell(layer[key]) for key in keys), f"{layer['count']:,}"] for layer in result["layers"]]
    arguments = ", ".join(f"{key}={value!r}" for key, value in result["arguments"].items())
    title = f"{result['model']}({arguments}), input {','.join(map(str, result['input']))}"
    print_table(title, [*keys.values(), "Parameters"], rows, left=2)
    show(
        Text(
            "Depth, 1 for the shallowest: I1 in order of execution, I2 from the top of a U-Net; - where there is no U."
        )
    )
    if result["unused"]:
        show(Text(f"{len(result['unused'])} parameters did not run, and are placed with their owners:"))
        for name in result["unused"]:
            show(Text(f"  {name}"))


@app.command("plugins")
def show_plugins(as_json: Json = False) -> None:
    """Show the installed plug-ins, and whether their hosts can be used."""
    states = [
        {"name": row.name, "installed": row.installed, "usable": row.usable, "reason": row.reason} for row in plugins()
    ]
    if as_json:
        print_json(states)
        return
    rows = [[str(row["name"]), cell(row["installed"]), str(row["reason"] or "usable")] for row in states]
    print_table("Plug-ins", ["Host", "Version", "State"], rows, left=3)

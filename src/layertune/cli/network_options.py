"""The options by which a command takes a network: its name, the shape of an input, arguments of its constructor."""

from typing import Annotated

import typer

from layertune.hosts.networks import NamedNetwork, named_network, parse_arguments, parse_shape

__all__ = ["Arguments", "InputShape", "network_of"]

InputShape = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="Shape of an input, batch first, as in 2,1,96,96,96. A batch of 1 fails where a batch norm in train "
        "mode sees one value per channel. Default: a batch of 2 of timm's own input size; for MONAI 96 voxels or "
        "256 pixels a side.",
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", help="An argument of the constructor, key=value, as JSON or a Python literal."),
]


def network_of(model: str, shape: str | None, arguments: list[str] | None) -> NamedNetwork:
    """Make the network that a command's options describe; see ``named_network`` for its errors."""
    return named_network(
        model, shape=None if shape is None else parse_shape(shape), arguments=parse_arguments(arguments or [])
    )

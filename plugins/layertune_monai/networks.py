"""Make MONAI's networks from their names; imports without MONAI."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from layertune.hosts.networks import BATCH, NamedNetwork, construct, empty_input
from layertune.hosts.plugin import import_host
from layertune_monai.plugin import PLUGIN

__all__ = ["PLUGIN", "build", "names"]

# Values for arguments that a network requires and the user has not given.
COMMON: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": (16, 32, 64, 128, 256),
    "strides": (2, 2, 2, 2),
}
SIDES = {1: 1024, 2: 256, 3: 96}  # length of a side of the input, by the number of spatial dimensions


def names() -> list[str]:
    """Return the names of all classes in ``monai.networks.nets``."""
    return [name for name, value in vars(import_host(PLUGIN, "networks.nets")).items() if isinstance(value, type)]


def build(name: str, *, shape: tuple[int, ...] | None, arguments: Mapping[str, Any]) -> NamedNetwork | None:
    """Make a network of MONAI and an input for it, or return None if MONAI has no network of this name.

    Args:
        name: The name of a class in ``monai.networks.nets``.
        shape: The shape of the input, batch first; None for a cube of 96 or a square of 256 pixels in a batch of 2.
        arguments: Keyword arguments for the constructor. Required ones that are missing follow from ``shape``, or get
            common values.

    Raises:
        MissingPackageError: MONAI is not installed, or too old.
        ModelError: MONAI refuses the arguments.
    """
    factory = getattr(import_host(PLUGIN, "networks.nets"), name, None)
    if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
        return None
    complete = _missing_arguments(factory, shape) | dict(arguments)
    network = construct(factory, name, complete)
    return NamedNetwork(network, empty_input(name, shape or _own_shape(factory, complete)), complete)


def _missing_arguments(factory: Callable[..., Any], shape: tuple[int, ...] | None) -> dict[str, Any]:
    """Return values for what the constructor requires; the shape of an input also decides what has a default."""
    common = dict(COMMON)
    if shape is not None and len(shape) > 2:
        common |= {"spatial_dims": len(shape) - 2, "in_channels": shape[1], "img_size": shape[2:]}
    else:
        common["img_size"] = (SIDES[3],) * 3
    parameters = inspect.signature(factory).parameters
    required = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    from_shape = {"spatial_dims", "in_channels"} & set(parameters) if shape is not None else set()
    return {key: value for key, value in common.items() if key in required | from_shape}


def _own_shape(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[int, ...]:
    dimensions = arguments.get("spatial_dims", _default(factory, "spatial_dims", 3))
    channels = arguments.get("in_channels", _default(factory, "in_channels", 1))
    size = arguments.get("img_size", (SIDES.get(dimensions, 96),) * dimensions)
    return (BATCH, channels, *(size if isinstance(size, Sequence) else (size,) * dimensions))


def _default(factory: Callable[..., Any], key: str, otherwise: int) -> int:
    parameter = inspect.signature(factory).parameters.get(key)
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else otherwise

"""Make timm's models from their names; imports without timm."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from layertune.hosts.networks import BATCH, NamedNetwork, construct, empty_input
from layertune.hosts.plugin import import_host
from layertune_timm.plugin import PLUGIN

__all__ = ["PLUGIN", "build", "names"]


def names() -> list[str]:
    """Return the names of all models of timm."""
    return list(import_host(PLUGIN).list_models())


def build(name: str, *, shape: tuple[int, ...] | None, arguments: Mapping[str, Any]) -> NamedNetwork | None:
    """Make a model of timm and an input for it, or return None if timm has no model of this name.

    Args:
        name: The name of the model, with or without the tag of its weights. The weights are random.
        shape: The shape of the input, batch first; None for the model's own input size in a batch of 2.
        arguments: Keyword arguments for ``timm.create_model``.

    Raises:
        MissingPackageError: timm is not installed, or too old.
        ModelError: timm refuses the arguments, or the model has no input size of its own and ``shape`` is None.
    """
    timm = import_host(PLUGIN)
    if not timm.is_model(name):
        return None
    network = construct(timm.create_model, name, arguments, positional=(name,))
    return NamedNetwork(network, empty_input(name, shape or _own_shape(network, arguments)), arguments)


def _own_shape(network: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the model's own input size, with the channels and the sides that it was made for.

    The channels cannot be read off the first convolution: a TResNet's takes 16 times as many, and a NaFlexViT has none.
    """
    size = getattr(network, "default_cfg", {}).get("input_size")
    if size is None:
        return None
    sides = arguments.get("img_size") or size[1:]
    return (BATCH, arguments.get("in_chans") or size[0], *(sides if isinstance(sides, Sequence) else (sides, sides)))

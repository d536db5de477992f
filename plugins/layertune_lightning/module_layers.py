"""Layers of a LightningModule: given, or traced from its own example input."""

import inspect
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from layertune import LayerMap, ModelError, map_layers
from layertune.layers.names import named_parameters

__all__ = ["Layers", "example_inputs", "find_layers"]

Layers = LayerMap | Callable[[pl.LightningModule], LayerMap]
"""A map of the module or of a network in it, or a function from the module to such a map."""


def find_layers(module: pl.LightningModule, layers: Layers | None) -> tuple[nn.Module, LayerMap]:
    """The network that has layers, and its map.

    Args:
        module: the user's module.
        layers: what the user gave; with ``None`` the module runs once on fake tensors of its ``example_input_array``.

    Returns:
        The module itself, or the network in it that a given map was made of.

    Raises:
        ModelError: there are no layers to be had, or the map belongs to another network, or to several alike.
    """
    if layers is None:
        return module, _trace(module)
    found = layers(module) if callable(layers) and not isinstance(layers, LayerMap) else layers
    if not isinstance(found, LayerMap):
        raise ModelError(
            f"layers= is a layertune.LayerMap, or a function from the module to one, and gave {type(found).__name__}; "
            "make one with layertune.map_layers(module, example_input)"
        )
    return _owner(module, found), found


def _owner(module: pl.LightningModule, layers: LayerMap) -> nn.Module:
    """The network that a map was made of, by its parameters' names; of several alike, the one that is not frozen."""
    names = {name for layer in layers for name in layer.parameters}
    alike: dict[frozenset[int], tuple[str, nn.Module]] = {}  # once each, whatever wraps it
    for path, network in module.named_modules():
        parameters = named_parameters(network)
        if set(parameters) == names:
            alike.setdefault(frozenset(map(id, parameters.values())), (path, network))
    trained = [owner for owner in alike.values() if any(p.requires_grad for p in owner[1].parameters())]
    owners = trained or list(alike.values())
    if not owners:
        raise ModelError(
            f"no network in {type(module).__name__} has just the {len(names)} parameters of the layers given; make the "
            "map of the very module that is trained, or of a network in it, with layertune.map_layers"
        )
    if len(owners) > 1:
        raise ModelError(
            f"the layers given may be those of {' or '.join(path for path, _ in owners)} in {type(module).__name__}, "
            "whose parameters have the same names; make the map of the whole module, with "
            "layertune.map_layers(module, example_input)"
        )
    return owners[0][1]


def example_inputs(module: pl.LightningModule, otherwise: str) -> tuple[Any, ...]:
    """What the module's forward takes, by position, from its ``example_input_array``.

    Args:
        module: the user's.
        otherwise: for the error, what to do instead.

    Raises:
        ModelError: it has none.
    """
    example = module.example_input_array
    if example is None:
        raise ModelError(
            f"layertune does not know the layers of {type(module).__name__}; set its example_input_array, or "
            f"{otherwise}"
        )
    if isinstance(example, dict):
        # A trace takes positions: the order of the names in `forward`.
        return inspect.signature(module.forward).bind(**example).args
    return (example,) if isinstance(example, Tensor) else tuple(example)


def _trace(module: pl.LightningModule) -> LayerMap:
    otherwise = (
        "give the callback layers=, for instance layers=lambda module: layertune.map_layers(module, example_input); an "
        "optimizer built from layertune.param_groups names its layers too"
    )
    return map_layers(module, *example_inputs(module, otherwise))

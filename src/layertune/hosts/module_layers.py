"""The layers of the network that a host trains: those that the user gave, or those that a trace finds."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from layertune.errors import ModelError
from layertune.layers.layer import LayerMap
from layertune.layers.layer_map import map_layers
from layertune.layers.names import named_parameters, unwrap

__all__ = ["Layers", "find_layers", "positional_inputs"]

Layers = LayerMap | Callable[[Any], LayerMap]
"""A map of the trained module or of a network inside it, or a function from the module to such a map."""


def find_layers(
    module: nn.Module, layers: Layers | None, example_inputs: Callable[[], tuple[Any, ...]], **options: Any
) -> tuple[nn.Module, LayerMap]:
    """Return the network that has layers, and the map of its layers.

    Args:
        module: The module that the host trains, also wrapped.
        layers: The layers that the user gave, or ``None`` for a trace of the module.
        example_inputs: A function that returns the arguments of the module's forward, called only for a trace.
        **options: Options of ``map_layers`` for the trace, for example ``depth="I2"``.

    Returns:
        The module itself, or the network inside it that the given map was made of.

    Raises:
        ModelError: No layers can be determined, or the map matches no network in the module, or more than one.

    Example:
        >>> import torch
        >>> module = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), nn.Softmax(dim=1))
        >>> network, layers = find_layers(module, map_layers(module[0], torch.zeros(1, 4)), lambda: ())
        >>> network is module[0], [layer.name for layer in layers]
        (True, ['0', '2'])
    """
    if layers is None:
        return module, map_layers(module, *example_inputs(), **options)
    layer_map = layers(module) if callable(layers) and not isinstance(layers, LayerMap) else layers
    if not isinstance(layer_map, LayerMap):
        raise ModelError(
            "layers= takes a layertune.LayerMap, or a function from the module to one, and got "
            f"{type(layer_map).__name__}; make one with layertune.map_layers(module, example_input)"
        )
    return _owner(module, layer_map), layer_map


def positional_inputs(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return the arguments of a module's forward by position, as ``map_layers`` takes them.

    Example:
        >>> positional_inputs(nn.Bilinear(2, 2, 1), input2="second", input1="first")
        ('first', 'second')
    """
    return inspect.signature(unwrap(module).forward).bind(*args, **kwargs).args if kwargs else args


def _owner(module: nn.Module, layers: LayerMap) -> nn.Module:
    """Find the network that a map was made of, by its parameters' names; of several alike, the one that trains."""
    names = {name for layer in layers for name in layer.parameters}
    alike: dict[frozenset[int], tuple[str, nn.Module]] = {}  # a network and its wrappers have the same parameters
    for path, network in module.named_modules():
        parameters = named_parameters(network)
        if set(parameters) == names:
            alike.setdefault(frozenset(map(id, parameters.values())), (path, network))
    trained = [owner for owner in alike.values() if any(p.requires_grad for p in owner[1].parameters())]
    owners = trained or list(alike.values())
    if not owners:
        raise ModelError(
            f"no network in {type(unwrap(module)).__name__} has exactly the {len(names)} parameters of the given "
            "layers; make the map of the module that is trained, or of a network in it, with layertune.map_layers"
        )
    if len(owners) > 1:
        raise ModelError(
            f"the given layers fit {' and '.join(path for path, _ in owners)} in {type(unwrap(module)).__name__}, "
            "because their parameters have the same names; make the map of the whole module, with "
            "layertune.map_layers(module, example_input)"
        )
    return owners[0][1]

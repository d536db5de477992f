"""The layers of a network: the record that policies, hosts and figures read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from torch import nn

from layertune.errors import ModelError
from layertune.layers.names import named_parameters, unwrap

__all__ = ["Depth", "Granularity", "Layer", "LayerMap", "Role", "parameters_by_layer", "require_network"]

Depth = Literal["I1", "I2"]
Granularity = Literal["module", "block", "stage"]
Role = Literal["encoder", "bottleneck", "decoder", "head"]


@dataclass(frozen=True)
class Layer:
    """A layer: the unit that gets one learning rate.

    Attributes:
        name: The path of the module that holds the layer, or of the first such module; unique in the map.
        parameters: The names of its parameters, in the order of the model.
        depth: Its depth: 1 is the shallowest, and the head is the deepest. Layers may share a depth under I2.
        role: The path of the U that holds it; ``"encoder"`` for all but the head in a network without a U.
        level: The resolution level of its output, 0 the finest; ``None`` if no forward was traced.
        feeds: The names of the layers that read its output, in the order of the map.
        size: The number of its weights: the elements of all its parameters, frozen ones included. A parameter that two
            layers share counts in the layer that holds it. ``None`` if a parameter has no shape yet.
    """

    name: str
    parameters: tuple[str, ...]
    depth: int
    role: Role
    level: int | None = None
    feeds: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True)
class LayerMap(Sequence[Layer]):
    """All layers of a network: a sequence in the order of I1 (contracting path, bottleneck, expanding path, head).

    Attributes:
        layers: The layers in this order; the head is the last.
        interpretation: How depth is counted: ``"I1"`` or ``"I2"``.
        granularity: What makes up a layer: ``"module"``, ``"block"`` or ``"stage"``.
        unused: The names of parameters that the traced forward did not run. They are placed in the layer of their
            owner all the same.
    """

    layers: tuple[Layer, ...]
    interpretation: Depth
    granularity: Granularity
    unused: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequence[Layer]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @property
    def d(self) -> int:
        """The depth of the network, which is the depth of the head: the paper's d."""
        return self.layers[-1].depth

    @property
    def head(self) -> Layer:
        """The layer that makes the output."""
        return self.layers[-1]

    @property
    def has_decoder(self) -> bool:
        """Whether the network is a U: its resolution rises again after its coarsest level."""
        return any(layer.role == "bottleneck" for layer in self.layers)

    def parameters_of(self, model: nn.Module) -> Mapping[str, list[nn.Parameter]]:
        """Return the parameters of each layer, by the layer's name.

        Args:
            model: The model that was mapped, or another one with the same parameters.

        Raises:
            ModelError: The map belongs to another network.
        """
        return parameters_by_layer(model, self)

    def layer_of(self, parameter: str) -> Layer:
        """Return the layer that holds a parameter.

        Args:
            parameter: The name of the parameter, without the prefixes of wrappers.

        Raises:
            ModelError: No layer holds a parameter of this name.
        """
        for layer in self.layers:
            if parameter in layer.parameters:
                return layer
        raise ModelError(f"no layer holds a parameter {parameter!r}; the map was made of another network")


def require_network(model: object) -> None:
    """Refuse what is no network, for instance because arguments were given in another order.

    Raises:
        ModelError: The message says which argument the network is.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a network, a torch.nn.Module, not a {type(model).__name__}; the network comes first in the "
            "arguments, before its layers, inputs or weights"
        )


def parameters_by_layer(model: nn.Module, layers: LayerMap) -> Mapping[str, list[nn.Parameter]]:
    """Return the parameters of each layer, by the layer's name.

    Args:
        model: The network that the layers belong to; it may be wrapped.
        layers: The layers of this network.

    Raises:
        ModelError: An argument is of another type, a parameter is in no layer or in two, or a layer names a parameter
            that the model lacks.
    """
    require_network(model)
    parameters = named_parameters(model)
    if not isinstance(layers, LayerMap):
        raise ModelError(
            f"expected the layers of {type(unwrap(model)).__name__}, a LayerMap, not a {type(layers).__name__}; make "
            "the map with map_layers(model, example_input)"
        )
    placed = [name for layer in layers for name in layer.parameters]
    missing = sorted(set(parameters) - set(placed))
    unknown = sorted(set(placed) - set(parameters))
    doubled = sorted({name for name in placed if placed.count(name) > 1}) if len(set(placed)) < len(placed) else []
    if missing or unknown or doubled:
        raise ModelError(
            f"this map does not fit {type(unwrap(model)).__name__}: in no layer {missing[:5]}, not in the model "
            f"{unknown[:5]}, in two layers {doubled[:5]}; make the map from this model with map_layers"
        )
    return {layer.name: [parameters[name] for name in layer.parameters] for layer in layers}

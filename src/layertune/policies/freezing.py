"""Freezing the layers that a policy gives no learning rate."""

import warnings
from types import TracebackType
from typing import Self

from torch import nn

from layertune.layers.layer_map import LayerMap, parameters_by_layer
from layertune.layers.names import named_parameters
from layertune.policies.policies import Policy, scales_of

__all__ = ["Frozen", "freeze"]


class Frozen:
    """What ``freeze`` switched off; ``undo()`` or the end of a ``with`` block switches it on again.

    Attributes:
        names: names of the parameters that were frozen here (those that were frozen before are left alone).
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.names = tuple(parameters)
        self._parameters = list(parameters.values())
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def undo(self) -> None:
        """Let the parameters require a gradient again; a second call does nothing."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._parameters = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


def freeze(model: nn.Module, layers: LayerMap, policy: Policy) -> Frozen:
    """Freeze the layers to which a policy gives scale 0, so that no backward pass runs below the first tuned one.

    Norms with running statistics keep following the data, as in the host's own training; use ``norm.eval()`` for
    fixed statistics.

    Args:
        model: the network.
        layers: its map.
        policy: scale 0 freezes.

    Returns:
        A handle with ``undo()``, also a context manager.

    Raises:
        ModelError: the map belongs to another network.
        PolicyError: the policy does not fit, or freezes everything.

    Example:
        >>> import torch
        >>> from layertune import LastLayer, map_layers
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> with freeze(net, map_layers(net, torch.empty(1, 1, 8, 8)), LastLayer()) as frozen:
        ...     frozen.names, net[0].weight.requires_grad
        (('0.weight', '0.bias'), False)
    """
    scales = scales_of(layers, policy)
    parameters_by_layer(model, layers)
    if all(scales):
        warnings.warn(f"the policy freezes none of the {len(layers)} layers, so freeze has no effect", stacklevel=2)
    fixed = {name for layer, scale in zip(layers, scales, strict=True) if not scale for name in layer.parameters}
    parameters = named_parameters(model)
    return Frozen({name: p for name, p in parameters.items() if name in fixed and p.requires_grad})

"""Freeze the layers to which a policy gives no learning rate."""

import warnings

from torch import nn

from layertune.layers.layer import LayerMap, parameters_by_layer
from layertune.layers.names import modules_by_name, named_parameters
from layertune.policies.policies import Policy, scales_of
from layertune.restoring import Frozen

__all__ = ["Frozen", "freeze"]


def freeze(model: nn.Module, layers: LayerMap, policy: Policy, *, statistics: bool = False) -> Frozen:
    """Freeze the layers to which a policy gives scale 0, so that no backward pass runs below the first tuned layer.

    A batch norm has running statistics beside its parameters. By default they keep following the training data, as in
    the hosts' own training: a frozen batch norm then normalises by the batch, and its output in evaluation changes
    while the network trains. ``statistics=True`` freezes them too, as Keras and detectron2 do: the batch norms of
    frozen layers then normalise by their stored statistics in train mode as well. Use it for small batches, and where a
    frozen layer has to compute what it computed before.

    Args:
        model: The network whose layers are frozen in place.
        layers: The layers of this network.
        policy: Gives each layer a scale; the layers with scale 0 are frozen.
        statistics: Whether the running statistics of the norms in frozen layers are frozen too.

    Returns:
        A handle with ``undo()``, which is also a context manager.

    Raises:
        ModelError: The map belongs to another network, or the arguments are in another order.
        PolicyError: The policy does not fit the map, or freezes all layers.

    Example:
        >>> import torch
        >>> from layertune import LastLayer, map_layers
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> with freeze(net, map_layers(net, torch.empty(1, 1, 8, 8)), LastLayer()) as frozen:
        ...     frozen.names, net[0].weight.requires_grad
        (('0.weight', '0.bias'), False)
    """
    parameters_by_layer(model, layers)
    scales = scales_of(layers, policy)
    if all(scales):
        warnings.warn(f"the policy freezes none of the {len(layers)} layers, so freeze has no effect", stacklevel=2)
    frozen_names = {name for layer, scale in zip(layers, scales, strict=True) if not scale for name in layer.parameters}
    parameters = named_parameters(model)
    return Frozen(
        {name: p for name, p in parameters.items() if name in frozen_names and p.requires_grad},
        _norms_of(model, frozen_names) if statistics else (),
    )


def _norms_of(model: nn.Module, frozen_names: set[str]) -> list[nn.Module]:
    """Return the norms with running statistics whose parameters, or else whose parent's parameters, are all frozen."""
    norms = []
    for path, module in modules_by_name(model).items():
        if module._buffers.get("running_mean") is not None:
            names = _below(model, path) or _below(model, path.rpartition(".")[0])
            if names and frozen_names.issuperset(names):
                norms.append(module)
    return norms


def _below(model: nn.Module, path: str) -> list[str]:
    """Return the names of the parameters in a module and its submodules."""
    return [name for name in named_parameters(model) if not path or name.startswith(f"{path}.")]

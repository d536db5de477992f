"""Layers and a policy -> param groups for any optimizer, and freezing."""

from collections.abc import Collection
from typing import Any

from torch import nn

from layertune.errors import OptimizerError
from layertune.layers.layer import LayerMap, parameters_by_layer
from layertune.layers.names import named_parameters
from layertune.policies.policies import AllLayers, Policy, scales_of

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module,
    layers: LayerMap,
    *,
    lr: float,
    policy: Policy | None = None,
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    no_weight_decay: Collection[str] = (),
) -> list[dict[str, Any]]:
    """One param group a layer (two where weight decay splits it), ready for any ``torch.optim.Optimizer``.

    Each group has ``params``, ``lr``, ``weight_decay``, and for layertune ``layer`` (its name) and ``depth``. Layers
    of scale 0 get no group: with ``freeze`` they also cost no backward pass. Parameters that do not require a gradient
    are left out.

    Args:
        model: the network.
        layers: its map, from ``map_layers``.
        lr: base learning rate; a layer's rate is this times the policy's scale.
        policy: scales by layer; ``AllLayers()`` if none is given.
        head_lr: base learning rate of the head; the paper takes ten times that of the other layers.
        weight_decay: decay of the weights of at least two dimensions, where it is not 0. Every group carries its
            decay, so one that is given to the optimizer itself has no effect.
        no_weight_decay: names of further parameters without decay. With decay, parameters of one dimension (biases,
            norms) never decay, as in timm.

    Returns:
        Groups in the order of the map. Every trainable parameter of a tuned layer is in exactly one.

    Raises:
        ModelError: the map belongs to another network.
        PolicyError: the policy does not fit, or freezes everything.
        OptimizerError: a name in ``no_weight_decay`` is no parameter, or nothing that is tuned requires a gradient.

    Example:
        >>> import torch
        >>> from layertune import map_layers
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> groups = param_groups(net, map_layers(net, torch.empty(1, 1, 8, 8)), lr=1e-3, head_lr=1e-2)
        >>> [(group["layer"], group["lr"]) for group in groups]
        [('0', 0.001), ('2', 0.01)]
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    scales = scales_of(layers, policy or AllLayers())
    held = parameters_by_layer(model, layers)
    names = {id(parameter): name for name, parameter in named_parameters(model).items()}
    _check_names(no_weight_decay, set(names.values()))
    if not all(0 <= rate < float("inf") for rate in (lr, lr if head_lr is None else head_lr)):
        raise OptimizerError(f"learning rates must be finite and >= 0, not lr={lr}, head_lr={head_lr}")
    groups: list[dict[str, Any]] = []
    for layer, scale in zip(layers, scales, strict=True):
        base = head_lr if head_lr is not None and layer is layers.head else lr
        common = {"lr": base * scale, "layer": layer.name, "depth": layer.depth}
        trained = [parameter for parameter in held[layer.name] if parameter.requires_grad] if scale else []
        decayed = [p for p in trained if weight_decay and p.ndim > 1 and names[id(p)] not in no_weight_decay]
        kept = {id(parameter) for parameter in decayed}
        plain = [parameter for parameter in trained if id(parameter) not in kept]
        groups += [
            {"params": part, "weight_decay": decay, **common}
            for part, decay in ((decayed, weight_decay), (plain, 0.0))
            if part
        ]
    if not groups:
        raise OptimizerError(
            f"no parameter of the {sum(map(bool, scales))} tuned layers requires a gradient; undo the freezing, or "
            "choose a policy that tunes other layers"
        )
    return groups


def _check_names(given: Collection[str], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise OptimizerError(f"no_weight_decay names no parameter of this network: {unknown[:5]}")

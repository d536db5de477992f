"""Param groups for any optimizer, by the layers of a network and a policy."""

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
    """Build the param groups of a network for any ``torch.optim.Optimizer``, one per layer.

    A layer has two groups where weight decay applies to some of its parameters only. Each group has ``params``, ``lr``
    and ``weight_decay``, and for layertune ``layer`` (the layer's name) and ``depth``. A layer with scale 0 gets no
    group; with ``freeze`` it also costs no backward pass. Parameters that do not require a gradient are left out.

    Args:
        model: The network whose parameters are grouped; it may be wrapped.
        layers: The layers of this network, from ``map_layers``.
        lr: The base learning rate. The rate of a layer is ``lr`` times its scale in the policy.
        policy: The policy, which gives each layer a scale. Default: ``AllLayers()``.
        head_lr: The base learning rate of the head. The MetaLR paper takes ten times the rate of the other layers.
            Default: ``lr``.
        weight_decay: The weight decay of parameters with at least two dimensions. With decay, parameters of one
            dimension (biases, norms) never decay, as in timm. Every group carries its own decay, so the weight decay
            that the optimizer gets itself has no effect.
        no_weight_decay: The names of further parameters without decay.

    Returns:
        The groups in the order of the map. Every trainable parameter of a tuned layer is in exactly one group.

    Raises:
        ModelError: The map belongs to another network, or the arguments are in another order.
        PolicyError: The policy does not fit the map, or freezes all layers.
        OptimizerError: A learning rate is negative or not finite, a name in ``no_weight_decay`` is not the name of a
            parameter, or no parameter of the tuned layers requires a gradient.

    Example:
        >>> import torch
        >>> from layertune import map_layers
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> groups = param_groups(net, map_layers(net, torch.empty(1, 1, 8, 8)), lr=1e-3, head_lr=1e-2)
        >>> [(group["layer"], group["lr"]) for group in groups]
        [('0', 0.001), ('2', 0.01)]
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    parameters = parameters_by_layer(model, layers)
    _check_names(no_weight_decay, named_parameters(model))
    _check_rates(lr=lr, head_lr=lr if head_lr is None else head_lr)
    scales = scales_of(layers, policy or AllLayers())
    decaying = _decaying(model, no_weight_decay) if weight_decay else set()
    groups: list[dict[str, Any]] = []
    for layer, scale in zip(layers, scales, strict=True):
        base = head_lr if head_lr is not None and layer is layers.head else lr
        common = {"lr": base * scale, "layer": layer.name, "depth": layer.depth}
        trained = [parameter for parameter in parameters[layer.name] if parameter.requires_grad] if scale else []
        decayed = [parameter for parameter in trained if id(parameter) in decaying]
        plain = [parameter for parameter in trained if id(parameter) not in decaying]
        parts = ((decayed, weight_decay), (plain, 0.0))
        groups += [{"params": part, "weight_decay": decay, **common} for part, decay in parts if part]
    if not groups:
        raise OptimizerError(
            f"no parameter of the {sum(map(bool, scales))} tuned layers requires a gradient; undo the freezing, or "
            "choose a policy that tunes other layers"
        )
    return groups


def _check_rates(**rates: float) -> None:
    if not all(0 <= rate < float("inf") for rate in rates.values()):
        text = ", ".join(f"{name}={rate}" for name, rate in rates.items())
        raise OptimizerError(f"learning rates must be finite and >= 0, not {text}")


def _decaying(model: nn.Module, no_weight_decay: Collection[str]) -> set[int]:
    """Return the identities of the parameters that decay."""
    parameters = named_parameters(model)
    return {id(p) for name, p in parameters.items() if p.ndim > 1 and name not in no_weight_decay}


def _check_names(names: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise OptimizerError(f"no_weight_decay names no parameter of this network: {unknown[:5]}")

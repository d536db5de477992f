"""Param groups by layer for a bundle's optimizer, beside MONAI's ``generate_param_groups``."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from layertune import LayerMap, ModelError, freeze, map_layers, norm_only
from layertune import param_groups as core_param_groups
from layertune.layers.layer import Depth, Granularity
from layertune.policies.by_name import scheme
from layertune.policies.policies import Policy, scales_of
from layertune_monai.handlers.engine import check_not_wrapped
from layertune_monai.handlers.report import log_layers, log_trained

__all__ = ["param_groups"]


def param_groups(
    network: nn.Module,
    *,
    lr: float,
    input_shape: Sequence[int] = (),
    layers: LayerMap | None = None,
    policy: Policy | str = "all",
    depth: Depth = "I1",
    granularity: Granularity = "block",
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    no_weight_decay: Collection[str] = (),
    train_head: bool = False,
) -> list[dict[str, Any]]:
    """One param group a layer, for any optimizer: what a static scheme trains, and what ``MetaLRHandler`` learns from.

    Layers to which the policy gives scale 0 get no group, and their parameters no gradient (``requires_grad`` is
    switched off, as by ``layertune.freeze``), so that no backward pass runs below the first tuned layer. The log says
    which layers train.

    Args:
        network: before it is wrapped for several processes, if the policy freezes layers.
        lr: base learning rate; a layer's rate is this times the policy's scale.
        input_shape: of an input, batch first, as ``[2, 1, 96, 96, 96]``; nothing is computed with it.
        layers: instead of ``input_shape``, the network's layers.
        policy: ``layertune.BiDirectional(3, 6)`` and its like, or the name of a scheme;
            ``"norm_only"`` freezes all but the norms' own parameters, as ``layertune.norm_only`` does.
        depth: ``"I1"`` (order of execution) or ``"I2"`` (resolution level of the U), MetaLR sec. 3.3.
        granularity: ``"module"``, ``"block"`` or ``"stage"``.
        head_lr: base learning rate of the head.
        weight_decay: decay of the weights of at least two dimensions.
        no_weight_decay: names of further parameters without decay.
        train_head: with the policy ``"norm_only"``, train the head too.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay``, ``layer`` and ``depth``, in the order of the layers.

    Raises:
        ModelError: neither a shape nor layers, a network that cannot be traced, layers to freeze in a network that is
            wrapped already, or ``"norm_only"`` for one whose norms have no gammas.
        PolicyError: a policy that does not fit the network.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> net = BasicUNet(spatial_dims=2, features=(4, 4, 8, 8, 8, 4))
        >>> groups = param_groups(net, lr=0.01, input_shape=[2, 1, 32, 32], policy="last")
        >>> [group["layer"] for group in groups], net.conv_0.conv_0.conv.weight.requires_grad
        (['final_conv'], False)
    """
    if layers is None:
        if not input_shape:
            raise ModelError(
                "param_groups needs the shape of an input to see the layers, as in input_shape=[2, 1, 96, 96, 96], or "
                "layers=layertune.map_layers(...)"
            )
        layers = map_layers(network, torch.empty(*input_shape), depth=depth, granularity=granularity)
    chosen = scheme(policy) if isinstance(policy, str) else policy
    if policy == "norm_only":
        _freeze_all_but_norms(network, layers.head.parameters if train_head else ())
    else:
        _freeze(network, layers, chosen)
    return core_param_groups(
        network,
        layers,
        lr=lr,
        policy=chosen,
        head_lr=head_lr,
        weight_decay=weight_decay,
        no_weight_decay=no_weight_decay,
    )


def _freeze(network: nn.Module, layers: LayerMap, policy: Policy) -> None:
    scales = scales_of(layers, policy)
    if not all(scales):
        check_not_wrapped(network)
        freeze(network, layers, policy)
    log_layers(layers, scales)


def _freeze_all_but_norms(network: nn.Module, head: Collection[str]) -> None:
    check_not_wrapped(network)
    norm_only(network, head=head)
    log_trained(network)

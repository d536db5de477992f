"""Param groups by layer for the optimizer of a bundle, like MONAI's ``generate_param_groups``."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from layertune import LayerMap, ModelError, Policy, PolicyError, freeze, map_layers, norm_only
from layertune import param_groups as core_param_groups
from layertune.layers.layer import Depth, Granularity
from layertune.policies.by_name import scheme
from layertune.policies.policies import scales_of
from layertune_monai.handlers.engine import check_not_wrapped
from layertune_monai.handlers.report import log_layers, log_trained

__all__ = ["param_groups"]


def param_groups(
    network: nn.Module,
    *,
    lr: float,
    input_shape: Sequence[int] = (),
    layers: LayerMap | None = None,
    policy: Policy | str = "all_layers",
    m: int | None = None,
    n: int | None = None,
    first: int | None = None,
    depth: Depth = "I1",
    granularity: Granularity = "block",
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    no_weight_decay: Collection[str] = (),
    train_head: bool = False,
) -> list[dict[str, Any]]:
    """Build one param group per layer, for any optimizer.

    The groups are what a fixed scheme trains, and the layers that ``MetaLRHandler`` learns rates for. A layer to which
    the policy gives the scale 0 gets no group. Its parameters get no gradient either (``requires_grad`` is switched
    off, as by ``layertune.freeze``), so no backward pass runs below the first trained layer. The log lists the trained
    and the frozen layers.

    Args:
        network: The network. If the policy freezes layers, pass it before ``DistributedDataParallel`` wraps it.
        lr: The base learning rate. The rate of a layer is ``lr`` times its scale in the policy.
        input_shape: The shape of an input, batch first, such as ``[2, 1, 96, 96, 96]``, by which the layers are found.
            Nothing is computed.
        layers: The layers of the network, instead of ``input_shape``.
        policy: A policy, such as ``layertune.BiDirectional(3, 6)``, or the name of a method: ``"bidirectional"``,
            ``"layer_wise"``, ``"last_layer"``, ``"all_layers"``; ``"norm_only"`` trains the affine parameters of the
            norms alone, as ``layertune.norm_only`` does. Methods that learn rates, such as ``"metalr"``, leave no layer
            out.
        m: The shallowest frozen depth of ``"bidirectional"``, together with ``n``. By default a third of the depths is
            frozen, in the middle.
        n: The deepest frozen depth of ``"bidirectional"``.
        first: The shallowest trained depth of ``"layer_wise"``. By default the deeper half is trained.
        depth: ``"I1"`` counts depth in order of execution, ``"I2"`` by resolution level of the U (MetaLR, sec. 3.3).
        granularity: What makes up a layer: ``"module"``, ``"block"`` or ``"stage"``.
        head_lr: The base learning rate of the head. ``None`` uses ``lr``.
        weight_decay: The weight decay of weights with at least two dimensions; all others get none.
        no_weight_decay: Names of further parameters without weight decay.
        train_head: Whether the policy ``"norm_only"`` trains the head too.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay``, ``layer`` and ``depth``, in the order of the layers.

    Raises:
        ModelError: There is neither a shape nor layers; the network cannot be traced; it is wrapped already and the
            policy freezes layers; or the policy is ``"norm_only"`` and the norms have no affine parameters.
        PolicyError: The policy is unknown or does not fit the network, or a number does not belong to it.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> net = BasicUNet(spatial_dims=2, features=(4, 4, 8, 8, 8, 4))
        >>> groups = param_groups(net, lr=0.01, input_shape=[2, 1, 32, 32], policy="last_layer")
        >>> [group["layer"] for group in groups], net.conv_0.conv_0.conv.weight.requires_grad
        (['final_conv'], False)
    """
    layer_policy = _policy(policy, m=m, n=n, first=first)
    if layers is None:
        if not input_shape:
            raise ModelError(
                "param_groups needs the shape of an input to find the layers, as in input_shape=[2, 1, 96, 96, 96], or "
                "layers=layertune.map_layers(...)"
            )
        layers = map_layers(network, torch.empty(*input_shape), depth=depth, granularity=granularity)
    if policy == "norm_only":
        _freeze_all_but_norms(network, layers.head.parameters if train_head else ())
    else:
        _freeze(network, layers, layer_policy)
    return core_param_groups(
        network,
        layers,
        lr=lr,
        policy=layer_policy,
        head_lr=head_lr,
        weight_decay=weight_decay,
        no_weight_decay=no_weight_decay,
    )


def _policy(policy: Policy | str, **numbers: int | None) -> Policy:
    if isinstance(policy, str):
        return scheme(policy, **numbers)
    settings = [f"{name}={number}" for name, number in numbers.items() if number is not None]
    if settings:
        raise PolicyError(f"{', '.join(settings)} belongs to a policy that is given by its name, not to {policy!r}")
    return policy


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

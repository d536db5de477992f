"""Static schemes as timm's ``param_group_fn``: a model in, param groups out."""

import fnmatch
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

import layertune as core
from layertune import AllLayers, BiDirectional, LastLayer, LayerDecay, LayerWise, param_groups
from layertune.layers.names import named_parameters, unwrap
from layertune.policies.policies import Policy
from layertune_timm.layers import map_layers

__all__ = ["Grouper", "all_layers", "bidirectional", "last_layer", "layer_decay", "layer_wise", "norm_only"]

Grouper = Callable[[nn.Module], list[dict[str, Any]]]


def all_layers(*, coarse: bool = False, fallback: Collection[str] = ()) -> Grouper:
    """One group a layer, all at the same rate: what ``MetaLR`` learns from.

    Every grouper makes groups with ``layer`` and ``depth`` beside timm's keys, leaves out parameters that do not
    require a gradient, and excludes parameters of one dimension and the model's ``no_weight_decay()`` from decay;
    the decay itself and the learning rate are those given to timm's factory.

    Args:
        coarse: timm's coarse groups (stages) instead of its fine ones (blocks).
        fallback: name patterns of parameters for the fallback of an optimizer that has one (timm's ``use_fallback``).

    Returns:
        A ``param_group_fn``.

    Example:
        >>> import timm
        >>> from timm.optim import create_optimizer_v2
        >>> from layertune import MetaLR
        >>> model = timm.create_model("resnet18")
        >>> optimizer = create_optimizer_v2(model, "sgd", lr=1e-2, weight_decay=1e-4, param_group_fn=all_layers())
        >>> metalr = MetaLR(optimizer, streaming=True)
        >>> len(metalr.lrs)
        10
    """
    return lambda model: _groups(model, AllLayers(), coarse=coarse, fallback=fallback)


def last_layer(*, coarse: bool = False, fallback: Collection[str] = ()) -> Grouper:
    """The classifier alone; see ``all_layers`` for arguments and keys.

    Example:
        >>> import timm
        >>> [group["layer"] for group in last_layer()(timm.create_model("resnet18"))]
        ['fc', 'fc']
    """
    return lambda model: _groups(model, LastLayer(), coarse=coarse, fallback=fallback)


def layer_wise(first: int, *, coarse: bool = False, fallback: Collection[str] = ()) -> Grouper:
    """Depths ``first`` to d, 1-based (MetaLR sec. 2.1); see ``all_layers`` for the other arguments.

    Example:
        >>> import timm
        >>> sorted({group["depth"] for group in layer_wise(first=8)(timm.create_model("resnet18"))})
        [8, 9, 10]
    """
    return lambda model: _groups(model, LayerWise(first), coarse=coarse, fallback=fallback)


def bidirectional(m: int, n: int, *, coarse: bool = False, fallback: Collection[str] = ()) -> Grouper:
    """All but depths m to n, 1-based (MetaLR sec. 2.1); see ``all_layers`` for the other arguments.

    Example:
        >>> import timm
        >>> sorted({group["depth"] for group in bidirectional(m=3, n=6)(timm.create_model("resnet18"))})
        [1, 2, 7, 8, 9, 10]
    """
    policy = BiDirectional(m, n)
    return lambda model: _groups(model, policy, coarse=coarse, fallback=fallback)


def layer_decay(
    rate: float, *, lr: float | None = None, coarse: bool = False, fallback: Collection[str] = ()
) -> Grouper:
    """Layer decay as timm has it: rate ** (d - depth) of the base rate.

    timm's schedulers multiply by ``lr_scale``, and nobody else does. So without ``lr`` the groups carry ``lr_scale``,
    right under timm's schedulers and there only; with ``lr`` each group carries its own rate instead, which timm's
    schedulers, torch's and no scheduler all start from.

    Args:
        rate: in (0, 1].
        lr: the base rate that timm's factory is given too.
        coarse: timm's coarse groups instead of its fine ones.
        fallback: as in ``all_layers``.

    Returns:
        A ``param_group_fn``.

    Example:
        >>> import timm
        >>> sorted({group["lr"] for group in layer_decay(0.5, lr=1.0)(timm.create_model("resnet18"))})[-3:]
        [0.25, 0.5, 1.0]
    """
    policy = LayerDecay(rate)
    return lambda model: _groups(model, policy, lr=lr, coarse=coarse, fallback=fallback)


def norm_only(
    *, biases: bool = False, head: bool = False, coarse: bool = False, fallback: Collection[str] = ()
) -> Grouper:
    """The parameters of the norms alone (Network Alchemy sec. 3.2.1); see ``all_layers`` for the other arguments.

    What gets no group is not updated, but its gradients are still computed: for a step that costs less freeze it with
    ``layertune.norm_only(model)``, as the launcher of timm's ``train.py`` does.

    Args:
        biases: train the biases of convolutions and linear layers too.
        head: train the classifier too, as one that is new needs.
        coarse: timm's coarse groups instead of its fine ones.
        fallback: as in ``all_layers``.

    Returns:
        A ``param_group_fn``. It raises ModelError for a model without gammas.

    Example:
        >>> import timm
        >>> groups = norm_only()(timm.create_model("resnet18"))
        >>> sum(parameter.numel() for group in groups for parameter in group["params"])
        9600
    """

    def group(model: nn.Module) -> list[dict[str, Any]]:
        trained = map_layers(model, coarse=coarse).head.parameters if head else ()
        kept = {parameter: parameter.grad for parameter in model.parameters()}
        with core.norm_only(model, biases=biases, head=trained):  # frozen parameters get no group
            groups = _groups(model, AllLayers(), coarse=coarse, fallback=fallback)
        for parameter, grad in kept.items():
            parameter.grad = grad
        return groups

    return group


def _groups(
    model: nn.Module, policy: Policy, *, coarse: bool, fallback: Collection[str], lr: float | None = None
) -> list[dict[str, Any]]:
    net = unwrap(model)
    names = {id(parameter): name for name, parameter in named_parameters(net).items()}
    no_weight_decay: Callable[[], Collection[str]] = getattr(net, "no_weight_decay", tuple)
    patterns = no_weight_decay()
    exempt = [name for name in names.values() if _matches(name, patterns)]
    # With a rate and a decay of 1 the core's groups say what share of timm's own each parameter gets.
    layers, base = map_layers(net, coarse=coarse), 1.0 if lr is None else lr
    shares = param_groups(net, layers, lr=base, policy=policy, weight_decay=1.0, no_weight_decay=exempt)
    groups = []
    for share in shares:
        for is_fallback in (False, True):
            params = [p for p in share["params"] if _matches(names[id(p)], fallback) == is_fallback]
            if params:
                groups.append(_timm_keys({**share, "params": params}, own_lr=lr is not None, is_fallback=is_fallback))
    return groups


def _timm_keys(group: dict[str, Any], *, own_lr: bool, is_fallback: bool) -> dict[str, Any]:
    if group["weight_decay"]:
        del group["weight_decay"]  # the factory's
    if not own_lr:
        group["lr_scale"] = group.pop("lr")
    if is_fallback:
        group["use_fallback"] = True
    return group


def _matches(name: str, patterns: Collection[str]) -> bool:
    patterns = (patterns,) if isinstance(patterns, str) else patterns  # else each letter would be one
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

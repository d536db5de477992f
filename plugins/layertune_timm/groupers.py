"""Static schemes for timm's ``param_group_fn``: functions that turn a model into param groups."""

import fnmatch
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

import layertune as core
from layertune import AllLayers, BiDirectional, InverseSize, LastLayer, LayerDecay, LayerWise, param_groups
from layertune.layers.names import named_parameters, unwrap
from layertune.policies.policies import Policy
from layertune_timm.layers import map_layers

__all__ = [
    "Grouper",
    "all_layers",
    "bidirectional",
    "inverse_size",
    "last_layer",
    "layer_decay",
    "layer_wise",
    "norm_only",
]

Grouper = Callable[[nn.Module], list[dict[str, Any]]]


def all_layers(*, coarse: bool = False, fallback: Collection[str] = ()) -> Grouper:
    """Group parameters by layer, all layers with the same learning rate. ``MetaLR`` starts from these groups.

    The groups of every grouper have the keys ``layer`` and ``depth`` beside timm's own. Parameters that require no
    gradient are in no group. Parameters of one dimension and those of the model's ``no_weight_decay()`` get no weight
    decay. The weight decay and the learning rate are those that timm's factory is given.

    Args:
        coarse: Whether layers are timm's coarse groups (stages) instead of its fine ones (blocks).
        fallback: Name patterns of the parameters that the optimizer's fallback trains, where an optimizer has one
            (timm's key ``use_fallback``).

    Returns:
        A function for ``param_group_fn``.

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
    """Train the classifier only. See ``all_layers`` for the arguments and the keys of the groups.

    Example:
        >>> import timm
        >>> [group["layer"] for group in last_layer()(timm.create_model("resnet18"))]
        ['fc', 'fc']
    """
    return lambda model: _groups(model, LastLayer(), coarse=coarse, fallback=fallback)


def layer_wise(first: int, *, coarse: bool = False, fallback: Collection[str] = ()) -> Grouper:
    """Train the layers from depth ``first`` on (MetaLR sec. 2.1).

    Args:
        first: The shallowest depth that trains, from 1.
        coarse: As in ``all_layers``.
        fallback: As in ``all_layers``.

    Returns:
        A function for ``param_group_fn``.

    Example:
        >>> import timm
        >>> sorted({group["depth"] for group in layer_wise(first=8)(timm.create_model("resnet18"))})
        [8, 9, 10]
    """
    return lambda model: _groups(model, LayerWise(first), coarse=coarse, fallback=fallback)


def bidirectional(m: int, n: int, *, coarse: bool = False, fallback: Collection[str] = ()) -> Grouper:
    """Train all layers but those of depths m to n (MetaLR sec. 2.1).

    Args:
        m: The shallowest depth that does not train, from 1.
        n: The deepest depth that does not train, below the depth of the classifier.
        coarse: As in ``all_layers``.
        fallback: As in ``all_layers``.

    Returns:
        A function for ``param_group_fn``.

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
    """Train each layer with rate ** (d - depth) times the base learning rate, as timm's layer decay does.

    Only timm's schedulers multiply by the key ``lr_scale``. Without ``lr`` the groups have this key, so the rates are
    right under timm's schedulers only. With ``lr`` each group has its own rate instead, which is right under timm's
    schedulers, under those of PyTorch, and without a scheduler.

    Args:
        rate: The factor from one layer to the shallower one, in (0, 1].
        lr: The base learning rate, which timm's factory must be given as well.
        coarse: As in ``all_layers``.
        fallback: As in ``all_layers``.

    Returns:
        A function for ``param_group_fn``.

    Example:
        >>> import timm
        >>> sorted({group["lr"] for group in layer_decay(0.5, lr=1.0)(timm.create_model("resnet18"))})[-3:]
        [0.25, 0.5, 1.0]
    """
    policy = LayerDecay(rate)
    return lambda model: _groups(model, policy, lr=lr, coarse=coarse, fallback=fallback)


def inverse_size(
    exponent: float = 1.0, *, lr: float | None = None, coarse: bool = False, fallback: Collection[str] = ()
) -> Grouper:
    """Train each layer with a rate in proportion to (number of its weights) ** -exponent.

    The smallest layer has the base learning rate. Attach ``MetaLR`` to learn that rate: it keeps the ratios between
    layers. The rates are the key ``lr_scale``, or each group's own ``lr``, as ``layer_decay`` explains.

    Args:
        exponent: How strongly the rate falls with the size of a layer, >= 0; 0 is ``all_layers``.
        lr: The base learning rate, which timm's factory must be given as well.
        coarse: As in ``all_layers``.
        fallback: As in ``all_layers``.

    Returns:
        A function for ``param_group_fn``.

    Example:
        >>> import timm
        >>> groups = inverse_size(0.5, lr=1.0)(timm.create_model("resnet18", num_classes=2))
        >>> {group["layer"]: round(group["lr"], 3) for group in groups if group["layer"] in ("fc", "layer4.1")}
        {'layer4.1': 0.015, 'fc': 1.0}
    """
    policy = InverseSize(exponent)
    return lambda model: _groups(model, policy, lr=lr, coarse=coarse, fallback=fallback)


def norm_only(
    *, biases: bool = False, head: bool = False, coarse: bool = False, fallback: Collection[str] = ()
) -> Grouper:
    """Train the parameters of the norms only (Network Alchemy sec. 3.2.1).

    Parameters without a group are not updated, but their gradients are still computed. To save that time, freeze them
    with ``layertune.norm_only(model)``, as the launcher of timm's ``train.py`` does.

    Args:
        biases: Whether the biases of convolutions and linear layers train too.
        head: Whether the classifier trains too, which a new classifier needs.
        coarse: As in ``all_layers``.
        fallback: As in ``all_layers``.

    Returns:
        A function for ``param_group_fn``. It raises ModelError for a model without gammas.

    Example:
        >>> import timm
        >>> groups = norm_only()(timm.create_model("resnet18"))
        >>> sum(parameter.numel() for group in groups for parameter in group["params"])
        9600
    """

    def group(model: nn.Module) -> list[dict[str, Any]]:
        trained = map_layers(model, coarse=coarse).head.parameters if head else ()
        gradients = {parameter: parameter.grad for parameter in model.parameters()}  # `norm_only` drops some
        with core.norm_only(model, biases=biases, head=trained):  # frozen parameters get no group
            groups = _groups(model, AllLayers(), coarse=coarse, fallback=fallback)
        for parameter, grad in gradients.items():
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
    # With lr = 1 and weight_decay = 1, the core's groups hold the factors on timm's own values.
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
        del group["weight_decay"]  # timm's factory sets its own
    if not own_lr:
        group["lr_scale"] = group.pop("lr")
    if is_fallback:
        group["use_fallback"] = True
    return group


def _matches(name: str, patterns: Collection[str]) -> bool:
    patterns = (patterns,) if isinstance(patterns, str) else patterns  # a string is a collection of letters
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

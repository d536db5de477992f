"""Methods of fine-tuning by name, as configuration files and command lines write them."""

import math

from layertune.errors import PolicyError
from layertune.layers.layer import LayerMap
from layertune.policies.policies import AllLayers, BiDirectional, LastLayer, LayerWise, Policy

__all__ = ["ALCHEMY_METHODS", "METHODS", "scheme"]

METHODS = ("metalr", "metalr_streaming", "bidirectional", "layer_wise", "last", "all")
ALCHEMY_METHODS = ("norm_only", "bnscale", "alchemy", "alchemy_metalr")
"""Those of Network Alchemy, which are about norms and not about layers."""


def scheme(method: str, *, m: int | None = None, n: int | None = None, first: int | None = None) -> Policy:
    """The policy of a method: which layers it trains.

    Args:
        method: ``"bidirectional"``, ``"layer_wise"``, ``"last"``, ``"all"``; and ``"metalr"``, ``"metalr_streaming"``
            and ``ALCHEMY_METHODS``, which leave no layer out.
        m: shallowest frozen depth of ``"bidirectional"``; with n left out as well, a third of the depths is frozen, in
            the middle: neither the shallowest nor the head.
        n: deepest frozen depth of ``"bidirectional"``.
        first: shallowest tuned depth of ``"layer_wise"``; by default the deeper half is tuned.

    Raises:
        PolicyError: the name is unknown, or a number does not belong to the method.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> net = nn.Sequential(*(nn.Conv2d(1, 1, 3) for _ in range(6)), nn.Flatten(), nn.Linear(16, 2))
        >>> layers = map_layers(net, empty(1, 1, 16, 16))
        >>> scheme("bidirectional")(layers)
        [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
        >>> scheme("layer_wise", first=6)(layers)
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """
    if method not in METHODS + ALCHEMY_METHODS:
        raise PolicyError(f"method is one of {', '.join(METHODS + ALCHEMY_METHODS)}, not {method!r}")
    numbers = {"m": (m, "bidirectional"), "n": (n, "bidirectional"), "first": (first, "layer_wise")}
    for name, (number, owner) in numbers.items():
        if number is not None and method != owner:
            raise PolicyError(f"{name}={number} belongs to the method {owner!r}, not to {method!r}; leave it out")
    if (m is None) != (n is None):
        raise PolicyError(f"m={m} and n={n}: 'bidirectional' freezes depths m to n; give both or neither")
    if method == "bidirectional":
        return BiDirectional(m, n) if m is not None and n is not None else _without_middle_third
    if method == "layer_wise":
        return _deeper_half if first is None else LayerWise(first)
    return LastLayer() if method == "last" else AllLayers()


def _without_middle_third(layers: LayerMap) -> list[float]:
    """Of an odd rest the shallow end keeps one more: in a U by levels few layers are shallow."""
    frozen = math.ceil(layers.d / 3)
    shallow = min(math.ceil((layers.d - frozen) / 2), layers.d - 1 - frozen)
    return BiDirectional(shallow + 1, shallow + frozen)(layers)


def _deeper_half(layers: LayerMap) -> list[float]:
    return LayerWise(layers.d // 2 + 1)(layers)

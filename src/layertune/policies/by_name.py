"""Methods of fine-tuning by name, as configuration files, command lines and tables write them."""

import math

from layertune.errors import PolicyError
from layertune.layers.layer import LayerMap
from layertune.policies.policies import AllLayers, BiDirectional, LastLayer, LayerWise, Policy

__all__ = ["ALCHEMY_METHODS", "METHODS", "method_name", "scheme"]

METHODS = ("metalr", "metalr_streaming", "bidirectional", "layer_wise", "last_layer", "all_layers")
"""The methods that choose layers or learn their rates."""

ALCHEMY_METHODS = ("norm_only", "bnscale", "alchemy", "alchemy_metalr")
"""The methods of Network Alchemy. They are about norms and leave no layer out."""

# Spellings of version 0.1, which differed from host to host.
OLD_SPELLINGS = {
    "all": "all_layers",
    "bi-directional": "bidirectional",
    "last": "last_layer",
    "last-then-all": "last_then_all",
    "layer-decay": "layer_decay",
    "layer-wise": "layer_wise",
    "norm-only": "norm_only",
}


def method_name(name: str) -> str:
    """Return the one spelling of a method's name, which code, command lines, files and tables share.

    Args:
        name: The name of a method, also in a spelling of version 0.1. Any other text is returned as it is.

    Example:
        >>> method_name("bi-directional"), method_name("last"), method_name("metalr")
        ('bidirectional', 'last_layer', 'metalr')
    """
    return OLD_SPELLINGS.get(name, name)


def scheme(method: str, *, m: int | None = None, n: int | None = None, first: int | None = None) -> Policy:
    """Return the policy of a method, which says which layers the method trains.

    Args:
        method: ``"bidirectional"``, ``"layer_wise"``, ``"last_layer"`` or ``"all_layers"``; or a method that leaves no
            layer out: ``"metalr"``, ``"metalr_streaming"`` or one of ``ALCHEMY_METHODS``.
        m: The shallowest frozen depth of ``"bidirectional"``. Without ``m`` and ``n``, the middle third of the depths
            is frozen. The head is never frozen, and the shallowest depth only in a network of two depths.
        n: The deepest frozen depth of ``"bidirectional"``.
        first: The shallowest tuned depth of ``"layer_wise"``. By default the deeper half is tuned.

    Raises:
        PolicyError: The name is unknown, or a number does not belong to the method. The policy raises it for a network
            of one depth, in which it cannot freeze a middle third.

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
    name = method_name(method)
    # An old spelling of `norm_only` is refused here: a bundle compares the name itself, and would train all layers.
    if name not in METHODS and method not in ALCHEMY_METHODS:
        raise PolicyError(f"method is one of {', '.join(METHODS + ALCHEMY_METHODS)}, not {method!r}")
    numbers = {"m": (m, "bidirectional"), "n": (n, "bidirectional"), "first": (first, "layer_wise")}
    for key, (number, owner) in numbers.items():
        if number is not None and name != owner:
            raise PolicyError(f"{key}={number} belongs to the method {owner!r}, not to {method!r}; leave it out")
    if (m is None) != (n is None):
        raise PolicyError(f"m={m} and n={n}: 'bidirectional' freezes depths m to n; give both or neither")
    if name == "bidirectional":
        return BiDirectional(m, n) if m is not None and n is not None else _freeze_middle_third
    if name == "layer_wise":
        return _tune_deeper_half if first is None else LayerWise(first)
    return LastLayer() if name == "last_layer" else AllLayers()


def _freeze_middle_third(layers: LayerMap) -> list[float]:
    """Freeze a third of the depths, rounded up; of an odd rest the shallow end keeps one more."""
    if layers.d < 2:
        raise PolicyError(
            f"'bidirectional' freezes depths below the head, so d must be at least 2, not {layers.d}; tune all layers, "
            "or map the layers in a finer granularity"
        )
    frozen = math.ceil(layers.d / 3)
    # By levels (I2) few layers are shallow and most are deep.
    shallow = min(math.ceil((layers.d - frozen) / 2), layers.d - 1 - frozen)
    return BiDirectional(shallow + 1, shallow + frozen)(layers)


def _tune_deeper_half(layers: LayerMap) -> list[float]:
    return LayerWise(layers.d // 2 + 1)(layers)

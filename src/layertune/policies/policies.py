"""Policies: which layers are fine-tuned, and at which scale of the base learning rate."""

from collections.abc import Callable
from numbers import Integral
from typing import Literal, get_args

from layertune.errors import PolicyError
from layertune.layers.layer import LayerMap

__all__ = [
    "AllLayers",
    "BiDirectional",
    "InverseSize",
    "LastLayer",
    "LayerDecay",
    "LayerWise",
    "Policy",
    "UNetScheme",
    "bidirectional_grid",
    "scales_of",
]

# A plain type, so that LightningCLI takes a policy from a configuration file (`class_path: layertune.BiDirectional`).
Policy = Callable[[LayerMap], list[float]]
"""A function that gives each layer of a map a scale of the base learning rate, in [0, inf); 0.0 freezes the layer."""

Scheme = Literal["contracting", "expanding", "top-down", "bottom-up"]


def AllLayers() -> Policy:  # noqa: N802 a noun, as users write it
    """Tune all layers at one learning rate.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> AllLayers()(map_layers(net, empty(1, 1, 8, 8)))
        [1.0, 1.0]
    """
    return lambda layers: [1.0] * len(layers)


def LastLayer() -> Policy:  # noqa: N802 a noun, as users write it
    """Tune only the head and freeze all other layers (MetaLR tab. 2 and 3, "Last Layer").

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> LastLayer()(map_layers(net, empty(1, 1, 8, 8)))
        [0.0, 1.0]
    """
    return lambda layers: [float(layer.depth == layers.d) for layer in layers]


def LayerWise(first: int) -> Policy:  # noqa: N802 a noun, as users write it
    """Tune depths ``first`` to d and freeze the shallower layers (Tajbakhsh et al. 2016; MetaLR sec. 2.1).

    Args:
        first: The shallowest depth that is tuned, from 1 (all layers) to d (only the head).

    Raises:
        PolicyError: ``first`` is not a whole number; or, when the policy is applied, it is not in 1..d.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        >>> LayerWise(first=2)(map_layers(net, empty(1, 1, 8, 8)))
        [0.0, 1.0, 1.0]
    """
    _check_depths("LayerWise", first=first)

    def policy(layers: LayerMap) -> list[float]:
        if not 1 <= first <= layers.d:
            raise PolicyError(f"LayerWise(first={first}): this network has depths 1 to {layers.d}; choose one of them")
        return [float(layer.depth >= first) for layer in layers]

    return policy


def BiDirectional(m: int, n: int) -> Policy:  # noqa: N802 a noun, as users write it
    """Freeze depths m to n and tune the layers on both sides: bi-directional fine-tuning (MetaLR sec. 2.1).

    Args:
        m: The shallowest frozen depth, at least 1.
        n: The deepest frozen depth, at least m and below d, since the head is always tuned.

    Raises:
        PolicyError: The depths are not whole numbers, or not 1 <= m <= n; or, when the policy is applied, n >= d.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        >>> BiDirectional(m=2, n=2)(map_layers(net, empty(1, 1, 8, 8)))
        [1.0, 0.0, 1.0]
    """
    _check_depths("BiDirectional", m=m, n=n)
    if not 1 <= m <= n:
        raise PolicyError(f"BiDirectional(m={m}, n={n}) freezes depths m to n and needs 1 <= m <= n")

    def policy(layers: LayerMap) -> list[float]:
        if n >= layers.d:
            raise PolicyError(
                f"BiDirectional(m={m}, n={n}): n must be below d = {layers.d}, the head of this network, which is "
                "always tuned"
            )
        return [float(not m <= layer.depth <= n) for layer in layers]

    return policy


def bidirectional_grid(d: int) -> list[tuple[int, int]]:
    """Return all d(d-1)/2 settings (m, n) of ``BiDirectional`` for a network of depth d (MetaLR sec. 2.1).

    Args:
        d: The depth of the network, at least 2.

    Raises:
        PolicyError: d is below 2.

    Example:
        >>> bidirectional_grid(3)
        [(1, 1), (1, 2), (2, 2)]
    """
    if d < 2:
        raise PolicyError(f"a network of depth {d} has no layer to freeze beside its head; d must be at least 2")
    return [(m, n) for m in range(1, d) for n in range(m, d)]


def LayerDecay(rate: float) -> Policy:  # noqa: N802 a noun, as users write it
    """Scale the rate of each layer by ``rate ** (d - depth)``, the layer decay of timm and BEiT.

    Args:
        rate: The factor from a depth to the next shallower one, in (0, 1]; 1 tunes all layers alike.

    Raises:
        PolicyError: ``rate`` is not in (0, 1].

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        >>> LayerDecay(rate=0.5)(map_layers(net, empty(1, 1, 8, 8)))
        [0.25, 0.5, 1.0]
    """
    if not 0 < rate <= 1:
        raise PolicyError(f"LayerDecay(rate={rate}): the rate must be above 0 and at most 1; 0.75 is common")
    return lambda layers: [rate ** (layers.d - layer.depth) for layer in layers]


def InverseSize(exponent: float = 1.0) -> Policy:  # noqa: N802 a noun, as users write it
    """Scale the rate of each layer by ``(n_min / n) ** exponent``, with n its number of weights and n_min the smallest.

    Large layers then move little, and small ones at the full rate. In a U-Net the layers in the middle are the largest,
    so the rates have the U shape that MetaLR found there (MetaLR fig. 4). No exponent is best everywhere: in trials
    1 did well with few labelled cases and a shift at the input, and 0 where the large layers had to change.
    ``layertune.choose`` finds one of a few by held-out loss.

    Args:
        exponent: How strongly the rate falls with the size of a layer, >= 0. 0 tunes all layers alike, as
            ``AllLayers``; with 1, the default, a layer of twice the size gets half the rate.

    Raises:
        PolicyError: ``exponent`` is negative or not finite; or, when the policy is applied, the map holds no sizes, or
            the exponent is so large that a rate becomes 0.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        >>> layers = map_layers(net, empty(1, 1, 8, 8))
        >>> [layer.size for layer in layers], InverseSize(exponent=1)(layers)
        ([40, 290], [1.0, 0.13793103448275862])
    """
    if not 0 <= exponent < float("inf"):
        raise PolicyError(
            f"InverseSize(exponent={exponent}): the exponent must be finite and >= 0; 0.5 and 1 are common"
        )

    def policy(layers: LayerMap) -> list[float]:
        sizes = [layer.size for layer in layers if layer.size is not None]
        if len(sizes) < len(layers):
            raise PolicyError(
                f"InverseSize(exponent={exponent}) needs the sizes of the layers, and this map has none for "
                f"{[layer.name for layer in layers if layer.size is None][:5]}; make it with map_layers, after lazy "
                "modules have run once"
            )
        scales = [(max(min(sizes), 1) / max(size, 1)) ** exponent for size in sizes]
        if not all(scales):
            raise PolicyError(
                f"InverseSize(exponent={exponent}) gives the largest layer, of {max(sizes)} weights, a rate of 0; take "
                "a smaller exponent, or freeze layers with another policy"
            )
        return scales

    return policy


def UNetScheme(scheme: Scheme, levels: int | None = None) -> Policy:  # noqa: N802 a noun, as users write it
    """Tune one part of a U-Net and freeze the rest (Amiri et al. 2020); the head is always tuned.

    Args:
        scheme: The part that is tuned. ``"contracting"``: the contracting path and the bottleneck. ``"expanding"``:
            the expanding path. ``"top-down"``: the finest ``levels`` resolution levels of both paths.
            ``"bottom-up"``: the coarsest ``levels`` resolution levels.
        levels: The number of resolution levels that are tuned, for ``"top-down"`` and ``"bottom-up"`` only.

    Raises:
        PolicyError: The scheme is unknown, or the number of levels is wrong; or, when the policy is applied, the
            network has no decoder or fewer levels.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> down, up = nn.Conv2d(1, 4, 2, stride=2), nn.ConvTranspose2d(4, 4, 2, stride=2)
        >>> net = nn.Sequential(down, up, nn.Conv2d(4, 2, 1))
        >>> UNetScheme("contracting")(map_layers(net, empty(1, 1, 8, 8)))
        [1.0, 0.0, 1.0]
    """
    by_level = scheme in ("top-down", "bottom-up")
    if scheme not in get_args(Scheme) or by_level != (levels is not None) or (levels is not None and levels < 1):
        raise PolicyError(
            f"UNetScheme({scheme!r}, levels={levels}): choose 'contracting' or 'expanding' without levels, or "
            "'top-down' or 'bottom-up' with levels from 1"
        )

    def policy(layers: LayerMap) -> list[float]:
        if not layers.has_decoder:
            raise PolicyError(f"UNetScheme({scheme!r}) needs a network with an expanding path; this one has none")
        if levels is None:
            path = {"decoder"} if scheme == "expanding" else {"encoder", "bottleneck"}
            return [float(layer.role in path or layer.role == "head") for layer in layers]
        tuned = _levels(layers, scheme, levels)
        return [float((layer.level or 0) in tuned or layer.role == "head") for layer in layers]

    return policy


def _levels(layers: LayerMap, scheme: Scheme, count: int) -> list[int]:
    levels = sorted({layer.level or 0 for layer in layers[:-1]}, reverse=scheme == "bottom-up")
    if count > len(levels):
        raise PolicyError(f"UNetScheme({scheme!r}, levels={count}): this network has {len(levels)} levels")
    return levels[:count]


def scales_of(layers: LayerMap, policy: Policy) -> list[float]:
    """Apply a policy to the layers of a network, and check the scales that it returns.

    Args:
        layers: The layers of the network.
        policy: A function from the layers to one scale per layer.

    Returns:
        One scale per layer, in the order of the map.

    Raises:
        PolicyError: ``policy`` is not a policy, does not return one finite scale >= 0 for each layer, or freezes all
            layers.
    """
    if not callable(policy):
        raise PolicyError(f"a policy is LastLayer(), BiDirectional(m=2, n=4) or the like, not {policy!r}")
    name = getattr(policy, "__name__", "")
    if getattr(policy, "__module__", "") == __name__ and name in __all__:
        raise PolicyError(f"{name} is a function that makes a policy; call it, as in BiDirectional(m=2, n=4)")
    scales = policy(layers)
    if len(scales) != len(layers) or not all(0 <= scale < float("inf") for scale in scales):
        raise PolicyError(
            f"a policy returns one finite scale >= 0 for each of the {len(layers)} layers; this one returned {scales}"
        )
    if not any(scales):
        raise PolicyError(f"this policy freezes all {len(layers)} layers and leaves nothing to train")
    return scales


def _check_depths(policy: str, **depths: object) -> None:
    for name, depth in depths.items():
        if not isinstance(depth, Integral):
            raise PolicyError(f"{policy}({name}={depth!r}): a depth is a whole number from 1")

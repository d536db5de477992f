"""The settings that a method tries on a network, each with the layers that are trained."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from layertune import (
    AllLayers,
    BiDirectional,
    InverseSize,
    LastLayer,
    LayerDecay,
    LayerMap,
    LayerWise,
    PolicyError,
    UNetScheme,
    bidirectional_grid,
)
from layertune.policies.policies import Policy
from layertune_studies.config.methods import (
    BiDirectionalMethod,
    Decay,
    InverseSizeMethod,
    L2SPMethod,
    Last,
    LayerWiseMethod,
    Method,
    UNet,
)

__all__ = ["Depths", "Setting", "policy_of", "settings_of"]


@dataclass(frozen=True)
class Setting:
    """A choice of the layers that are trained, or of the weight of a penalty.

    Attributes:
        label: Name of the setting, for tables and file names.
        policy: Kind of the policy; ``"penalty"`` for all layers under a penalty.
        numbers: Arguments of the policy, or the weight of the penalty.
    """

    label: str
    policy: Literal["all", "last", "layer-wise", "bi-directional", "decay", "inverse_size", "unet", "penalty"] = "all"
    numbers: tuple[Any, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Depths:
    """The properties of a network that its settings depend on.

    Attributes:
        d: The depth of the network.
        levels: Number of resolution levels below the head.
    """

    d: int
    levels: int

    @classmethod
    def of(cls, layers: LayerMap) -> "Depths":
        """Return the depths of a network's layers."""
        return cls(layers.d, len({layer.level for layer in layers[:-1]}))


def settings_of(method: Method, depths: Depths) -> list[Setting]:
    """Return all settings of a method on a network; a method without a choice has one.

    Raises:
        PolicyError: A setting does not fit the network.
    """
    match method:
        case Last():
            return [Setting("last", "last")]
        case LayerWiseMethod():
            return [Setting(f"from-{k}", "layer-wise", (k,)) for k in method.first or range(depths.d, 0, -1)]
        case BiDirectionalMethod():
            pairs: Sequence[tuple[int, int]] = method.settings or bidirectional_grid(depths.d)
            return [Setting(f"m{m}-n{n}", "bi-directional", (m, n)) for m, n in pairs]
        case Decay():
            return [Setting(f"decay-{rate:g}", "decay", (rate,)) for rate in method.rates]
        case InverseSizeMethod():
            return [Setting(f"exponent-{exponent:g}", "inverse_size", (exponent,)) for exponent in method.exponents]
        case L2SPMethod():
            return [Setting(f"alpha-{alpha:g}", "penalty", (alpha,)) for alpha in method.alphas]
        case UNet():
            return [_unet_setting(name) for name in method.schemes or _unet_schemes(depths)]
        case _:
            return [Setting("all")]


def policy_of(setting: Setting) -> Policy:
    """Return the policy of a setting."""
    factories: dict[str, Any] = {
        "all": AllLayers,
        "last": LastLayer,
        "layer-wise": LayerWise,
        "bi-directional": BiDirectional,
        "decay": LayerDecay,
        "inverse_size": InverseSize,
        "unet": UNetScheme,
        "penalty": lambda _: AllLayers(),
    }
    policy: Policy = factories[setting.policy](*setting.numbers)
    return policy


def _unet_schemes(depths: Depths) -> list[str]:
    down = [f"top-down-{count}" for count in range(1, depths.levels + 1)]
    up = [f"bottom-up-{count}" for count in range(1, depths.levels)]  # all levels are tuned by the last of the others
    return ["contracting", "expanding", *down, *up]


def _unet_setting(name: str) -> Setting:
    order, _, levels = name.rpartition("-")
    if name in ("contracting", "expanding"):
        return Setting(name, "unet", (name,))
    if order in ("top-down", "bottom-up") and levels.isdigit():
        return Setting(name, "unet", (order, int(levels)))
    raise PolicyError(f"{name!r} is no U-Net scheme: contracting, expanding, top-down-N or bottom-up-N for N levels")

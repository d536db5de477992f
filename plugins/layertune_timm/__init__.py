"""layertune for timm: parameter groupers for ``create_optimizer_v2(..., param_group_fn=...)``."""

from typing import TYPE_CHECKING, Any

from layertune.hosts.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_timm.groupers import all_layers, bidirectional, last_layer, layer_decay, layer_wise, norm_only
    from layertune_timm.layers import map_layers

__all__ = [
    "PLUGIN",
    "all_layers",
    "bidirectional",
    "last_layer",
    "layer_decay",
    "layer_wise",
    "map_layers",
    "norm_only",
]

PLUGIN = Plugin(name="timm", distribution="timm", lowest="1.0.22", module="timm", extra="timm")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_host(PLUGIN)
    from layertune_timm import groupers, layers

    return getattr(layers if name == "map_layers" else groupers, name)

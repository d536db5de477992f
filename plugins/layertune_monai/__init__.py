"""layertune for MONAI: handlers for its engines, and a bundle."""

import importlib
from typing import TYPE_CHECKING, Any

from layertune.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_monai.layer_freeze_handler import LayerFreezeHandler
    from layertune_monai.metalr_handler import MetaLRHandler
    from layertune_monai.param_groups import param_groups

__all__ = ["PLUGIN", "LayerFreezeHandler", "MetaLRHandler", "param_groups"]

PLUGIN = Plugin(name="MONAI", distribution="monai", lowest="1.6", module="monai", extra="monai")

_MODULES = {
    "LayerFreezeHandler": "layer_freeze_handler",
    "MetaLRHandler": "metalr_handler",
    "param_groups": "param_groups",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_host(PLUGIN)
    value = getattr(importlib.import_module(f"layertune_monai.{_MODULES[name]}"), name)
    globals()[name] = value  # or the submodule of that name would stand here from now on
    return value

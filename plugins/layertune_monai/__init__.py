"""layertune for MONAI: handlers for its engines, and a bundle."""

import importlib
from typing import TYPE_CHECKING, Any

from layertune.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_monai.alchemy_handler import AlchemyHandler
    from layertune_monai.gamma_penalty_handler import GammaPenaltyHandler
    from layertune_monai.genesis_unet import GenesisUNet
    from layertune_monai.layer_freeze_handler import LayerFreezeHandler
    from layertune_monai.layer_groups import param_groups
    from layertune_monai.metalr_handler import MetaLRHandler
    from layertune_monai.training import Training
    from layertune_monai.weights import load_pretrained

__all__ = [
    "PLUGIN",
    "AlchemyHandler",
    "GammaPenaltyHandler",
    "GenesisUNet",
    "LayerFreezeHandler",
    "MetaLRHandler",
    "Training",
    "load_pretrained",
    "param_groups",
]

PLUGIN = Plugin(name="MONAI", distribution="monai", lowest="1.6", module="monai", extra="monai")

_MODULES = {
    "AlchemyHandler": "alchemy_handler",
    "GammaPenaltyHandler": "gamma_penalty_handler",
    "GenesisUNet": "genesis_unet",
    "LayerFreezeHandler": "layer_freeze_handler",
    "MetaLRHandler": "metalr_handler",
    "Training": "training",
    "load_pretrained": "weights",
    "param_groups": "layer_groups",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_host(PLUGIN)
    value = getattr(importlib.import_module(f"layertune_monai.{_MODULES[name]}"), name)
    globals()[name] = value  # or the submodule of that name would stand here from now on
    return value

"""layertune for MONAI: handlers for its engines, and a bundle."""

import importlib
from typing import TYPE_CHECKING, Any

from layertune.hosts.plugin import Plugin, import_host
from layertune.old_paths import redirect

if TYPE_CHECKING:
    from layertune_monai.bundle.training import Training
    from layertune_monai.genesis.unet import GenesisUNet
    from layertune_monai.handlers.alchemy import AlchemyHandler
    from layertune_monai.handlers.gamma_penalty import GammaPenaltyHandler
    from layertune_monai.handlers.layer_freeze import LayerFreezeHandler
    from layertune_monai.handlers.metalr import MetaLRHandler
    from layertune_monai.layer_groups import param_groups
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

# Bundles that were written by version 0.1 name these modules.
redirect(
    {
        "layertune_monai.bundle_workflow": "layertune_monai.bundle.workflow",
        "layertune_monai.checkpoints": "layertune_monai.bundle.checkpoints",
        "layertune_monai.decathlon": "layertune_monai.bundle.decathlon",
        "layertune_monai.epoch_seeds": "layertune_monai.bundle.epoch_seeds",
        "layertune_monai.genesis_pretext": "layertune_monai.genesis.pretext",
        "layertune_monai.genesis_unet": "layertune_monai.genesis.unet",
        "layertune_monai.label_check": "layertune_monai.bundle.label_check",
        "layertune_monai.phases": "layertune_monai.bundle.switches",
        "layertune_monai.polynomial_decay": "layertune_monai.bundle.polynomial_decay",
        "layertune_monai.training": "layertune_monai.bundle.training",
    }
)

_MODULES = {
    "AlchemyHandler": "handlers.alchemy",
    "GammaPenaltyHandler": "handlers.gamma_penalty",
    "GenesisUNet": "genesis.unet",
    "LayerFreezeHandler": "handlers.layer_freeze",
    "MetaLRHandler": "handlers.metalr",
    "Training": "bundle.training",
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

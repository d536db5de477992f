"""layertune for MONAI: handlers for its engines, and a bundle."""

from typing import TYPE_CHECKING

from layertune.hosts.plugin import lazy_names
from layertune.old_paths import redirect
from layertune_monai.plugin import PLUGIN

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
    "AlchemyHandler": "layertune_monai.handlers.alchemy",
    "GammaPenaltyHandler": "layertune_monai.handlers.gamma_penalty",
    "GenesisUNet": "layertune_monai.genesis.unet",
    "LayerFreezeHandler": "layertune_monai.handlers.layer_freeze",
    "MetaLRHandler": "layertune_monai.handlers.metalr",
    "Training": "layertune_monai.bundle.training",
    "load_pretrained": "layertune_monai.weights",
    "param_groups": "layertune_monai.layer_groups",
}

__getattr__ = lazy_names(__name__, PLUGIN, _MODULES.get)

"""layertune for timm: parameter groupers for ``create_optimizer_v2(..., param_group_fn=...)``."""

from typing import TYPE_CHECKING

from layertune.hosts.plugin import lazy_names
from layertune_timm.plugin import PLUGIN

if TYPE_CHECKING:
    from layertune_timm.groupers import (
        all_layers,
        bidirectional,
        inverse_size,
        last_layer,
        layer_decay,
        layer_wise,
        norm_only,
    )
    from layertune_timm.layers import map_layers
    from layertune_timm.optimizers import register_optimizers

__all__ = [
    "PLUGIN",
    "all_layers",
    "bidirectional",
    "inverse_size",
    "last_layer",
    "layer_decay",
    "layer_wise",
    "map_layers",
    "norm_only",
    "register_optimizers",
]

_MODULES = {
    "all_layers": "layertune_timm.groupers",
    "bidirectional": "layertune_timm.groupers",
    "inverse_size": "layertune_timm.groupers",
    "last_layer": "layertune_timm.groupers",
    "layer_decay": "layertune_timm.groupers",
    "layer_wise": "layertune_timm.groupers",
    "map_layers": "layertune_timm.layers",
    "norm_only": "layertune_timm.groupers",
    "register_optimizers": "layertune_timm.optimizers",
}

__getattr__ = lazy_names(__name__, PLUGIN, _MODULES.get)

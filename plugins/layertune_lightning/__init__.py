"""layertune for Lightning: callbacks; modules, optimizers and loops stay as they are."""

from typing import TYPE_CHECKING

from layertune.hosts.plugin import lazy_names
from layertune_lightning.plugin import PLUGIN

if TYPE_CHECKING:
    from layertune_lightning.alchemy_callback import AlchemyCallback
    from layertune_lightning.auto_rgn_callback import AutoRGNCallback
    from layertune_lightning.gamma_penalty_callback import GammaPenaltyCallback
    from layertune_lightning.l2_sp_callback import L2SPCallback
    from layertune_lightning.layer_freeze_callback import LayerFreezeCallback
    from layertune_lightning.metalr_callback import MetaLRCallback
    from layertune_lightning.phased_freezing_callback import PhasedFreezingCallback
    from layertune_lightning.schedule_free_callback import ScheduleFreeCallback

__all__ = [
    "PLUGIN",
    "AlchemyCallback",
    "AutoRGNCallback",
    "GammaPenaltyCallback",
    "L2SPCallback",
    "LayerFreezeCallback",
    "MetaLRCallback",
    "PhasedFreezingCallback",
    "ScheduleFreeCallback",
]

_MODULES = {
    "AlchemyCallback": "layertune_lightning.alchemy_callback",
    "AutoRGNCallback": "layertune_lightning.auto_rgn_callback",
    "GammaPenaltyCallback": "layertune_lightning.gamma_penalty_callback",
    "L2SPCallback": "layertune_lightning.l2_sp_callback",
    "LayerFreezeCallback": "layertune_lightning.layer_freeze_callback",
    "MetaLRCallback": "layertune_lightning.metalr_callback",
    "PhasedFreezingCallback": "layertune_lightning.phased_freezing_callback",
    "ScheduleFreeCallback": "layertune_lightning.schedule_free_callback",
}

# Lightning's two packages have to be imported in an order of their own, so that module comes before the host.
__getattr__ = lazy_names(__name__, PLUGIN, _MODULES.get, before="layertune_lightning.two_packages")

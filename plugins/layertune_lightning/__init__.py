"""layertune for Lightning: callbacks; modules, optimizers and loops stay as they are."""

import importlib
from typing import TYPE_CHECKING, Any

from layertune.hosts.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_lightning.alchemy_callback import AlchemyCallback
    from layertune_lightning.gamma_penalty_callback import GammaPenaltyCallback
    from layertune_lightning.layer_freeze_callback import LayerFreezeCallback
    from layertune_lightning.metalr_callback import MetaLRCallback

__all__ = ["PLUGIN", "AlchemyCallback", "GammaPenaltyCallback", "LayerFreezeCallback", "MetaLRCallback"]

PLUGIN = Plugin(
    name="Lightning", distribution="pytorch-lightning", lowest="2.6", module="pytorch_lightning", extra="lightning"
)

_MODULES = {
    "AlchemyCallback": "alchemy_callback",
    "GammaPenaltyCallback": "gamma_penalty_callback",
    "LayerFreezeCallback": "layer_freeze_callback",
    "MetaLRCallback": "metalr_callback",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("layertune_lightning.two_packages")  # before anything else imports Lightning
    import_host(PLUGIN)
    return getattr(importlib.import_module(f"layertune_lightning.{_MODULES[name]}"), name)

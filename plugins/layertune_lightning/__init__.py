"""layertune for Lightning: callbacks; modules, optimizers and loops stay as they are."""

import importlib
from typing import TYPE_CHECKING, Any

from layertune.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_lightning.freeze_callback import LayerFreezeCallback
    from layertune_lightning.metalr_callback import MetaLRCallback

__all__ = ["PLUGIN", "LayerFreezeCallback", "MetaLRCallback"]

PLUGIN = Plugin(
    name="Lightning", distribution="pytorch-lightning", lowest="2.6", module="pytorch_lightning", extra="lightning"
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("layertune_lightning.host")  # before anything else imports Lightning
    import_host(PLUGIN)
    from layertune_lightning import freeze_callback, metalr_callback

    return getattr(freeze_callback if name == "LayerFreezeCallback" else metalr_callback, name)

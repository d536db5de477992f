"""Lightning comes as two packages, ``pytorch_lightning`` and ``lightning.pytorch``, each with classes of its own.

A callback of this plug-in is one of both, so it does not matter whose Trainer it is given to, nor which is imported
first. ``lightning`` brings ``pytorch-lightning`` with it, so the second is always there.
"""

import importlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from layertune.errors import MissingPackageError
from layertune.hosts.plugin import import_host
from layertune_lightning.plugin import PLUGIN

__all__ = ["Callback", "callbacks_of"]

NOTICES = "lightning_utilities.core.rank_zero"


def _classes() -> list[type[Any]]:
    """``Callback`` of each package that is installed."""
    loaded = {"pytorch_lightning", "lightning.pytorch"} & set(sys.modules)
    log = sys.modules[NOTICES].log if loaded else None
    classes = [import_host(PLUGIN).Callback]
    if _unified_is_installed():
        classes.append(importlib.import_module("lightning.pytorch").Callback)
    if loaded:
        # Both packages give their notices to one logger, and the last that is imported takes it over.
        vars(sys.modules[NOTICES])["log"] = log
    return classes


def _unified_is_installed() -> bool:
    try:
        found = importlib.metadata.version("lightning")
    except importlib.metadata.PackageNotFoundError:
        return False
    if Version(found) < Version(PLUGIN.lowest):
        raise MissingPackageError(
            f"{PLUGIN.name} needs lightning>={PLUGIN.lowest} where that package is installed, and {found} is: "
            "pip install --upgrade lightning",
            name="lightning",
        )
    return True


if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning import Callback
else:

    class Callback(*_classes()):
        """Base of the plug-in's callbacks."""


def callbacks_of(trainer: "pl.Trainer") -> "list[pl.Callback]":
    """All callbacks of a Trainer, whose class does not declare them."""
    found: list[pl.Callback] = getattr(trainer, "callbacks", [])
    return found

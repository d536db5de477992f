"""Serve both packages of Lightning, ``pytorch_lightning`` and ``lightning.pytorch``, which have classes of their own.

A callback of this plug-in derives from the ``Callback`` of both packages, so the Trainer of either takes it, whichever
package is imported first. The distribution ``lightning`` requires ``pytorch-lightning``, so that one is always there.
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
    """Return the class ``Callback`` of each installed package."""
    loaded = {"pytorch_lightning", "lightning.pytorch"} & set(sys.modules)
    log = sys.modules[NOTICES].log if loaded else None
    classes = [import_host(PLUGIN).Callback]
    if _unified_is_installed():
        classes.append(importlib.import_module("lightning.pytorch").Callback)
    if loaded:
        # Both packages use one logger for their notices, and the package imported last would take it over.
        vars(sys.modules[NOTICES])["log"] = log
    return classes


def _unified_is_installed() -> bool:
    try:
        version = importlib.metadata.version("lightning")
    except importlib.metadata.PackageNotFoundError:
        return False
    if Version(version) < Version(PLUGIN.lowest):
        raise MissingPackageError(
            f"{PLUGIN.name} needs lightning>={PLUGIN.lowest} where that package is installed, and {version} is: "
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
    """Return all callbacks of a Trainer; Lightning's class does not declare the attribute."""
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks", [])
    return callbacks

"""Lightning comes as two packages, ``pytorch_lightning`` and ``lightning.pytorch``, each with classes of its own.

A callback of this plug-in is one of both, so it does not matter whose Trainer it is given to, nor which is imported
first. ``lightning`` brings ``pytorch-lightning`` with it, so the second is always there.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from layertune.errors import MissingPackageError
from layertune_lightning import PLUGIN

__all__ = ["Callback"]


def _classes() -> list[type[Any]]:
    """``Callback`` of each package that is installed."""
    modules = ["pytorch_lightning"]
    try:
        unified = importlib.metadata.version("lightning")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        if Version(unified) < Version(PLUGIN.lowest):
            raise MissingPackageError(
                f"{PLUGIN.name} needs lightning>={PLUGIN.lowest} where that package is installed, and {unified} is: "
                "pip install --upgrade lightning",
                name="lightning",
            )
        modules.append("lightning.pytorch")
    return [importlib.import_module(module).Callback for module in modules]


if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:

    class Callback(*_classes()):
        """Base of the plug-in's callbacks."""

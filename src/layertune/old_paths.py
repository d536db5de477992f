"""Module paths of earlier versions, which scripts and configurations of users still name."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["redirect"]

NEW_PATHS: dict[str, str] = {}


def redirect(paths: Mapping[str, str]) -> None:
    """Make old module paths import the modules that hold their names today.

    Nothing is imported before an old path is imported, so a plug-in may redirect to modules that need its host.

    Args:
        paths: A dictionary from the old full path of a module to the full path of the module of today.

    Example:
        >>> redirect({"layertune.shallow_and_deep": "layertune.layers.depth"})
        >>> from layertune.shallow_and_deep import depths
        >>> depths.__module__
        'layertune.layers.depth'
    """
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())
    NEW_PATHS.update(paths)


class _OldPaths(MetaPathFinder, Loader):
    """Find the modules of old paths, after all other finders were asked."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the import system passes all three
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in NEW_PATHS else None

    def exec_module(self, module: ModuleType) -> None:
        # The import system returns the entry of `sys.modules` after this call, so both paths give one module object.
        sys.modules[module.__name__] = importlib.import_module(NEW_PATHS[module.__name__])

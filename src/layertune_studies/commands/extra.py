"""Import the studies where a command asks for them, or name what installs them."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from layertune.cli.terminal import aside
from layertune.errors import MissingPackageError

__all__ = ["studies", "study_module"]


@contextmanager
def studies() -> Iterator[None]:
    """Name what installs the studies, whose packages are an extra, where one of them is missing."""
    try:
        with aside():
            yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in {"layertune", "layertune_studies"}:
            raise
        raise MissingPackageError(
            f"this command needs the package {error.name}, which is not installed: pip install 'layertune[studies]'",
            name=error.name,
        ) from error


def study_module(name: str) -> ModuleType:
    """Import a module of the studies by its path below ``layertune_studies``, as in ``engine.run``."""
    with studies():
        return _import_study(name)


def _import_study(name: str) -> ModuleType:
    return importlib.import_module(f"layertune_studies.{name}")

"""Name what installs the packages of the studies, which are an extra, where one of them is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from layertune.cli.terminal import hosts_to_stderr
from layertune.errors import MissingPackageError

__all__ = ["studies"]


@contextmanager
def studies() -> Iterator[None]:
    """Answer a missing package with the line that installs it, and keep what hosts print off the standard output.

    A command imports modules of the studies within this block, so that the command line works without the extra.

    Raises:
        MissingPackageError: A package of the extra ``studies`` is not installed.
    """
    try:
        with hosts_to_stderr():
            yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in {"layertune", "layertune_studies"}:
            raise
        raise MissingPackageError(
            f"this command needs the package {error.name}, which is not installed: pip install 'layertune[studies]'",
            name=error.name,
        ) from error

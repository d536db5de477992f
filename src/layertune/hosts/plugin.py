"""Plug-ins for hosts: how one describes itself, and how all installed ones are found."""

import importlib
import importlib.metadata
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from packaging.version import Version

from layertune.errors import MissingPackageError

__all__ = ["COMMANDS", "GROUP", "Plugin", "PluginStatus", "host_commands", "import_host", "plugins"]

GROUP = "layertune.plugins"
"""The entry-point group in which a plug-in names its ``Plugin``."""

COMMANDS = "layertune.commands"
"""The entry-point group in which a plug-in names the commands that it adds to the command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """What a plug-in says about itself.

    The entry point names such an object, and the module that holds it must import without its host, so that a
    missing host is an answer and not a traceback.

    Args:
        name: the host's name, as users say it.
        distribution: the host's name in the package registry.
        lowest: the lowest version of the host that works.
        module: the host's top-level module.
        extra: the extra that installs the host.
        provider: the distribution that has this extra.

    Raises:
        packaging.version.InvalidVersion: ``lowest`` is not a version; it is a ``ValueError``.

    Example:
        >>> Plugin(name="timm", distribution="timm", lowest="1.0.22", module="timm", extra="timm").install_line
        "pip install 'layertune[timm]'"
    """

    name: str
    distribution: str
    lowest: str
    module: str
    extra: str
    provider: str = "layertune"

    def __post_init__(self) -> None:
        Version(self.lowest)

    @property
    def install_line(self) -> str:
        """The line that installs the host in a version that works."""
        return f"pip install '{self.provider}[{self.extra}]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginStatus:
    """One row of ``plugins()``.

    Args:
        name: the plug-in's name.
        plugin: its description; None if that could not be loaded.
        installed: the installed version of the host; None if there is none.
        reason: why the plug-in cannot be used; None if it can.
    """

    name: str
    plugin: Plugin | None
    installed: str | None
    reason: str | None

    @property
    def usable(self) -> bool:
        """Whether the host is there, in a version that works."""
        return self.reason is None


def plugins() -> list[PluginStatus]:
    """All plug-ins that are installed, by name, each with its host's version and whether it can be used.

    Plug-ins are found by their entry points in the group ``layertune.plugins``. No host is imported. A plug-in that
    cannot be loaded is a row with the reason, and does not hide the others.

    Example:
        >>> all(row.usable or row.reason for row in plugins())
        True
    """
    entries = importlib.metadata.entry_points(group=GROUP)
    return [_status(entry) for entry in sorted(entries, key=lambda entry: (entry.name, entry.value))]


def host_commands() -> dict[str, Any]:
    """Return the commands that plug-ins and studies add to ``layertune``.

    They are found by their entry points in the group ``layertune.commands``. The module that holds them must import
    without its host. A command that cannot be loaded is left out with a warning, so that the others still work.

    Returns:
        The command's name to a ``typer.Typer`` with several commands, or to the function of a single one.

    Example:
        >>> sorted(host_commands())
        ['bench', 'demo', 'monai', 'nnunet', 'rank', 'study']
    """
    found = {}
    for entry in sorted(importlib.metadata.entry_points(group=COMMANDS), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # noqa: BLE001 - code of somebody else, which may fail in any way
            reason = f"cannot be loaded from {entry.value!r} ({type(error).__name__}: {error})"
            warnings.warn(f"the commands `layertune {entry.name}` are left out: they {reason}", stacklevel=2)
    return found


def import_host(plugin: Plugin, submodule: str = "") -> ModuleType:
    """Import a plug-in's host, or say what to install.

    Args:
        plugin: whose host.
        submodule: what to import below the host's top-level module, as in ``"optim"``; empty for the module itself.

    Returns:
        The imported module.

    Raises:
        MissingPackageError: the host is not installed, or its version is below ``plugin.lowest``; the message holds
            the line that installs it.

    Example:
        >>> host = Plugin(name="PyTorch", distribution="torch", lowest="2.6", module="torch", extra="timm")
        >>> import_host(host, "optim").__name__
        'torch.optim'
    """
    reason = _unmet(plugin, _installed(plugin.distribution))
    if reason is not None:
        raise MissingPackageError(reason, name=plugin.module)
    return importlib.import_module(f"{plugin.module}.{submodule}" if submodule else plugin.module)


def _status(entry: importlib.metadata.EntryPoint) -> PluginStatus:
    try:
        plugin = entry.load()
    except Exception as error:  # noqa: BLE001 - code of somebody else, which may fail in any way
        reason = f"its entry point {entry.value!r} cannot be loaded ({type(error).__name__}: {error})"
        return PluginStatus(name=entry.name, plugin=None, installed=None, reason=reason)
    if not isinstance(plugin, Plugin):
        reason = f"its entry point {entry.value!r} should name a layertune.Plugin, and names {plugin!r}"
        return PluginStatus(name=entry.name, plugin=None, installed=None, reason=reason)
    installed = _installed(plugin.distribution)
    return PluginStatus(name=plugin.name, plugin=plugin, installed=installed, reason=_unmet(plugin, installed))


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unmet(plugin: Plugin, installed: str | None) -> str | None:
    """Why this version of the host will not do; None if it will."""
    needed = f"{plugin.name} needs {plugin.distribution}>={plugin.lowest}"
    if installed is None:
        return f"{needed}, which is not installed: {plugin.install_line}"
    if Version(installed) < Version(plugin.lowest):
        upgrade = plugin.install_line.replace("install", "install --upgrade", 1)
        return f"{needed}, and {installed} is installed: {upgrade}"
    return None

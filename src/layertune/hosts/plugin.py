"""Plug-ins for hosts: how a plug-in describes itself, and how all installed ones are found."""

import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from packaging.version import Version

from layertune.errors import MissingPackageError

__all__ = [
    "COMMANDS",
    "GROUP",
    "Plugin",
    "PluginStatus",
    "host_commands",
    "import_host",
    "lazy_names",
    "load_entries",
    "plugins",
]

GROUP = "layertune.plugins"
"""The entry-point group in which a plug-in names its ``Plugin``."""

COMMANDS = "layertune.commands"
"""The entry-point group in which plug-ins and studies name the commands that they add to the command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin:
    """Describe the plug-in of a host.

    The module that holds the description must import without the host, so that a missing host is an answer and not a
    traceback.

    Args:
        name: The host's name, as its users write it.
        distribution: The host's name in the package registry.
        lowest: The lowest version of the host that works.
        module: The host's top-level module.
        extra: The extra that installs the host.
        provider: The distribution that has this extra.

    Raises:
        packaging.version.InvalidVersion: ``lowest`` is not a version. The error is a ``ValueError``.

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
        """The shell command that installs the host in a version that works."""
        return f"pip install '{self.provider}[{self.extra}]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginStatus:
    """Say whether a plug-in can be used: one row of ``plugins()``.

    Args:
        name: The name of the plug-in.
        plugin: The description of the plug-in; None if it could not be loaded.
        installed: The installed version of the host; None if the host is not installed.
        reason: Why the plug-in cannot be used; None if it can.
    """

    name: str
    plugin: Plugin | None
    installed: str | None
    reason: str | None

    @property
    def usable(self) -> bool:
        """Whether the host is installed in a version that works."""
        return self.reason is None


def plugins() -> list[PluginStatus]:
    """Return the status of all installed plug-ins, sorted by name.

    Plug-ins are found by their entry points in the group ``layertune.plugins``. No host is imported. A plug-in that
    cannot be loaded gets a row with the reason, and does not hide the others.

    Example:
        >>> all(row.usable or row.reason for row in plugins())
        True
    """
    return [_status(entry) for entry in _entries(GROUP)]


def host_commands() -> dict[str, Any]:
    """Return the commands that plug-ins and studies add to ``layertune``.

    They are found by their entry points in the group ``layertune.commands``. The module that holds them must import
    without its host. A command that cannot be loaded is left out with a warning, so that the others still work.

    Returns:
        A dictionary from the command's name to a ``typer.Typer`` with several commands, or to the function of a
        single one.

    Example:
        >>> sorted(host_commands())
        ['bench', 'demo', 'monai', 'nnunet', 'rank', 'study']
    """
    return load_entries(COMMANDS, "the commands `layertune {name}`")


def load_entries(group: str, kind: str) -> dict[str, Any]:
    """Load what all installed packages name in a group of entry points.

    An entry that cannot be loaded is left out with a warning, so that the others still work.

    Args:
        group: The name of the group.
        kind: How the warning calls the entries, in the plural; ``{name}`` stands for the entry's name.

    Returns:
        A dictionary from the entry's name to the loaded object, sorted by name.
    """
    objects = {}
    for entry in _entries(group):
        try:
            objects[entry.name] = entry.load()
        except Exception as error:  # noqa: BLE001 - code of other people, which may fail in any way
            reason = f"cannot be loaded from {entry.value!r} ({type(error).__name__}: {error})"
            warnings.warn(f"{kind.format(name=entry.name)} are left out: they {reason}", stacklevel=3)
    return objects


def import_host(plugin: Plugin, submodule: str = "") -> ModuleType:
    """Import a plug-in's host, or say what to install.

    Args:
        plugin: The plug-in of the host.
        submodule: The module to import below the host's top-level module, as in ``"optim"``. By default the top-level
            module itself is imported.

    Returns:
        The imported module.

    Raises:
        MissingPackageError: The host is not installed, or its version is below ``plugin.lowest``. The message holds
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


def lazy_names(
    package: str, plugin: Plugin, module_of: Callable[[str], str | None], *, before: str | None = None
) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a plug-in's package, which imports the host when a public name is first used.

    Args:
        package: The name of the plug-in's package, ``__name__`` in its ``__init__``.
        plugin: The plug-in. A missing host is answered with the line that installs it.
        module_of: A function that returns the module in which a public name is defined, or None for an unknown name.
            It is the ``get`` of a dictionary in most plug-ins.
        before: A module to import before the host.

    Returns:
        The function. It keeps what it found in the package, so that it is called once for each name.

    Example:
        >>> host = Plugin(name="PyTorch", distribution="torch", lowest="2.6", module="torch", extra="timm")
        >>> get_name = lazy_names("torch", host, {"SGD": "torch.optim"}.get)
        >>> get_name("SGD").__name__
        'SGD'
        >>> get_name("SDG")
        Traceback (most recent call last):
        AttributeError: module 'torch' has no attribute 'SDG'
    """

    def get_name(name: str) -> Any:
        module = module_of(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if before is not None:
            importlib.import_module(before)
        import_host(plugin)
        value = getattr(importlib.import_module(module), name)
        # Python binds an imported submodule to its package, which would hide a public name that is spelled alike.
        setattr(sys.modules[package], name, value)
        return value

    return get_name


def _entries(group: str) -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value))


def _status(entry: importlib.metadata.EntryPoint) -> PluginStatus:
    try:
        plugin = entry.load()
    except Exception as error:  # noqa: BLE001 - code of other people, which may fail in any way
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
    """Return why the installed version of the host is not supported, or None if it is."""
    needed = f"{plugin.name} needs {plugin.distribution}>={plugin.lowest}"
    if installed is None:
        return f"{needed}, which is not installed: {plugin.install_line}"
    if Version(installed) < Version(plugin.lowest):
        upgrade = plugin.install_line.replace("install", "install --upgrade", 1)
        return f"{needed}, and {installed} is installed: {upgrade}"
    return None

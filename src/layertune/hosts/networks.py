"""Make a network from its name: one of a host's networks, or what a function of the user's own returns."""

import ast
import difflib
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from layertune.errors import MissingPackageError, ModelError
from layertune.hosts.plugin import Plugin, load_entries

__all__ = [
    "BATCH",
    "HostNetworks",
    "NamedNetwork",
    "construct",
    "empty_input",
    "import_factory",
    "named_network",
    "parse_arguments",
    "parse_shape",
    "require_known_network",
]

NETWORKS = "layertune.networks"
"""The entry-point group in which a plug-in names its ``HostNetworks``."""

BATCH = 2  # a batch norm in train mode refuses a single value per channel
Shape = tuple[int, ...]


@dataclass(frozen=True)
class NamedNetwork:
    """A network that was made from its name.

    Attributes:
        network: The network, with random weights.
        example: An input for it, of the shape that the user gave or else of a shape that suits the network.
        arguments: The arguments of its constructor.
    """

    network: nn.Module
    example: Tensor
    arguments: Mapping[str, Any]


class HostNetworks(Protocol):
    """The networks of a host, by name.

    A plug-in offers them as a module with these names, and names the module in the entry-point group
    ``layertune.networks``. The module imports without the host. Both functions raise ``MissingPackageError`` where the
    host is missing or too old.
    """

    PLUGIN: Plugin

    def names(self) -> Sequence[str]:
        """Return the names of all networks of the host, from which the nearest are shown for a name with a typo."""

    def build(self, name: str, *, shape: Shape | None, arguments: Mapping[str, Any]) -> NamedNetwork | None:
        """Make a network and an input for it, or return None if the host has no network of this name.

        Args:
            name: The name that the user wrote.
            shape: The shape of the input, batch first; None for a shape that suits the network.
            arguments: The user's arguments for the constructor.
        """


def named_network(name: str, *, shape: Shape | None = None, arguments: Mapping[str, Any] | None = None) -> NamedNetwork:
    """Make a network from its name, with random weights; nothing is downloaded.

    Args:
        name: The name of a network of timm or MONAI, or ``"module:factory"``. The module may also lie in the current
            folder.
        shape: The shape of an input, batch first. By default timm's own input size; for MONAI a cube of 96 or a
            square of 256 pixels; each in a batch of 2. A factory needs it.
        arguments: Keyword arguments for the constructor. For MONAI, required arguments that are missing get common
            values.

    Raises:
        ModelError: The name is unknown, the constructor refuses the arguments, or the shape for a factory is missing.
        MissingPackageError: No host is installed.

    Example:
        >>> made = named_network("torch.nn:Linear", shape=(2, 3), arguments={"in_features": 3, "out_features": 1})
        >>> made.network, made.example.shape
        (Linear(in_features=3, out_features=1, bias=True), torch.Size([2, 3]))
    """
    arguments = dict(arguments or {})
    if ":" in name:
        return _from_factory(name, shape, arguments)
    hosts: list[HostNetworks] = list(load_entries(NETWORKS, "the networks of {name}").values())
    for host in hosts:
        try:
            named = host.build(name, shape=shape, arguments=arguments)
        except MissingPackageError:
            continue
        if named is not None:
            return named
    raise _unknown(name, hosts)


def require_known_network(name: str) -> None:
    """Refuse a name that is no network's; a function of the user's own is imported and not called.

    Args:
        name: The name of a network of timm or MONAI, or ``"module:factory"``.

    Raises:
        ModelError: The name is unknown, or the module cannot be imported.
        MissingPackageError: No host is installed.
    """
    if ":" in name:
        import_factory(name)
        return
    hosts: list[HostNetworks] = list(load_entries(NETWORKS, "the networks of {name}").values())
    if not any(_knows(host, name) for host in hosts):
        raise _unknown(name, hosts)


def _knows(host: HostNetworks, name: str) -> bool:
    try:
        # A name with the tag of its weights is not among the names.
        return name in host.names() or host.build(name, shape=None, arguments={}) is not None
    except MissingPackageError:
        return False
    except ModelError:  # the constructor needs arguments
        return True


def import_factory(name: str) -> Callable[..., Any]:
    """Import the function or class that ``"module:factory"`` names; the module may also lie in the current folder.

    Raises:
        ModelError: The module cannot be imported, or has no such function.

    Example:
        >>> import_factory("torch.nn:Linear").__name__
        'Linear'
    """
    module_name, _, attribute = name.partition(":")
    module = _import_from_here(name, module_name)
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if factory is None or not callable(factory):
        near = _nearest(attribute, [key for key, value in vars(module).items() if callable(value)])
        raise ModelError(f"{module_name} has no function or class {attribute!r}{near}; write module:factory")
    return factory


def construct(
    factory: Callable[..., Any], name: str, arguments: Mapping[str, Any], *, positional: Sequence[Any] = ()
) -> Any:
    """Call a constructor with a user's arguments, and answer its failure with one clear error.

    Args:
        factory: The class or function that makes the network.
        name: The name of the network, for the error.
        arguments: The keyword arguments that the user gave.
        positional: Positional arguments that come before them.

    Raises:
        ModelError: The constructor raised an error.
    """
    try:
        return factory(*positional, **arguments)
    except Exception as error:
        raise ModelError(
            f"{name} cannot be made with the arguments {dict(arguments)}: {_message(error)}; give or change them with "
            "--arg key=value"
        ) from error


def empty_input(name: str, shape: Shape | None) -> Tensor:
    """Return an uninitialised input for a network.

    Raises:
        ModelError: There is no shape.
    """
    if not shape:
        raise ModelError(f"the input of {name} is not known; give its shape, batch first: --input 2,3,224,224")
    try:
        return torch.empty(shape)
    except (RuntimeError, TypeError) as error:  # more memory than there is, or a side that is no 64-bit number
        raise ModelError(f"an input of shape {shape} cannot be made on this machine; give a smaller --input") from error


def parse_shape(text: str) -> Shape:
    """Read a shape from a text such as ``"1,1,96,96,96"``.

    Raises:
        ModelError: The text is not a list of whole numbers above 0.

    Example:
        >>> parse_shape("2,3,224,224")
        (2, 3, 224, 224)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ModelError(f"an input's shape is whole numbers above 0, as in 2,1,96,96,96, batch first; not {text!r}")
    return tuple(int(part) for part in parts)


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read arguments from texts of the form ``key=value``.

    A value is read as JSON or as a Python literal. Any other value is kept as a string and never run.

    Raises:
        ModelError: A text does not have that form.

    Example:
        >>> parse_arguments(["spatial_dims=3", "strides=(2, 2)", "norm=batch", "bias=true"])
        {'spatial_dims': 3, 'strides': (2, 2), 'norm': 'batch', 'bias': True}
    """
    arguments = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ModelError(f"an argument is written key=value, as in spatial_dims=3; not {text!r}")
        arguments[key.strip()] = _parse_value(value.strip())
    return arguments


def _parse_value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return text


def _from_factory(name: str, shape: Shape | None, arguments: Mapping[str, Any]) -> NamedNetwork:
    factory = import_factory(name)
    example = empty_input(name, shape)
    network = construct(factory, name, arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} should make a torch.nn.Module, and made a {type(network).__name__}")
    return NamedNetwork(network, example, arguments)


def _import_from_here(name: str, module: str) -> ModuleType:
    """Import a module with the current folder on the path, as ``python -m`` has it and a console script has not."""
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ModelError(f"{name}: the module {module!r} cannot be imported: {_message(error)}") from error
    finally:
        if added:
            sys.path.remove(folder)


def _unknown(name: str, hosts: Sequence[HostNetworks]) -> ModelError | MissingPackageError:
    if not hosts:
        return MissingPackageError(
            f"{name} may be a network of a host, and no installed package names any; install layertune again, so that "
            "Python finds its entry points"
        )
    known: list[str] = []
    missing: list[Plugin] = []
    for host in hosts:
        try:
            known += host.names()
        except MissingPackageError:
            missing.append(host.PLUGIN)
    lines = ", ".join(f"{plugin.name} is not usable here: {plugin.install_line}" for plugin in missing)
    if len(missing) == len(hosts):
        return MissingPackageError(f"{name} is a network of a host, and no host is installed: {lines}")
    names = " or ".join(host.PLUGIN.name for host in hosts)
    hint = f" ({lines})" if lines else ""
    return ModelError(
        f"there is no network {name!r} in {names}{_nearest(name, known)}; write a name of theirs or "
        f"module:factory{hint}"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    by_lower = {key.lower(): key for key in known}
    near = [by_lower[key] for key in difflib.get_close_matches(name.lower(), list(by_lower), n=3)]
    return f"; the nearest: {', '.join(near)}" if near else ""


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

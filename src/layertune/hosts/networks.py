"""A network by its name: any of timm's or MONAI's, or what a function of the user's own makes."""

import ast
import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from layertune.errors import MissingPackageError, ModelError
from layertune.hosts.plugin import Plugin, import_host

__all__ = ["NamedNetwork", "import_factory", "named_network", "parse_arguments", "parse_shape"]

MONAI = Plugin(name="MONAI", distribution="monai", lowest="1.6", module="monai", extra="monai")
BATCH = 2  # batch norms in train mode refuse a single value per channel
# For arguments that a MONAI network needs and the user has not given.
USUAL: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": (16, 32, 64, 128, 256),
    "strides": (2, 2, 2, 2),
}
SIDES = {1: 1024, 2: 256, 3: 96}


@dataclass(frozen=True)
class NamedNetwork:
    """A network that was asked for by name.

    Attributes:
        network: with random weights.
        example: an input of the shape that was given, or of one that suits it.
        arguments: what it was made with.
    """

    network: nn.Module
    example: Tensor
    arguments: Mapping[str, Any]


def named_network(
    name: str, *, shape: tuple[int, ...] | None = None, arguments: Mapping[str, Any] | None = None
) -> NamedNetwork:
    """Make a network from its name; its weights are random and nothing is downloaded.

    Args:
        name: a model of timm, a network of MONAI, or ``"module:factory"``, looked for in the current folder too.
        shape: of an input, batch first. By default timm's own input size, for MONAI a cube of 96 or a square of 256
            pixels, each in a batch of 2.
        arguments: for the constructor. For MONAI, missing ones without a default get usual values.

    Raises:
        ModelError: the name is unknown, the constructor refuses the arguments, or a factory's shape was not given.
        MissingPackageError: neither host is installed.

    Example:
        >>> made = named_network("torch.nn:Linear", shape=(2, 3), arguments={"in_features": 3, "out_features": 1})
        >>> made.network, made.example.shape
        (Linear(in_features=3, out_features=1, bias=True), torch.Size([2, 3]))
    """
    given = dict(arguments or {})
    if ":" in name:
        return _from_factory(name, shape, given)
    timm, monai = _host(_timm_plugin()), _host(MONAI, "networks.nets")
    if timm is not None and timm.is_model(name):
        network = _construct(timm.create_model, name, given, before=(name,))
        return NamedNetwork(network, _example(name, shape or _timm_shape(network, given)), given)
    factory = getattr(monai, name, None)
    if isinstance(factory, type) and issubclass(factory, nn.Module):
        given = _usual_arguments(factory, shape) | given
        network = _construct(factory, name, given)
        dimensions = given.get("spatial_dims", _default(factory, "spatial_dims", 3))
        channels = given.get("in_channels", _default(factory, "in_channels", 1))
        size = given.get("img_size", (SIDES.get(dimensions, 96),) * dimensions)
        size = size if isinstance(size, Sequence) else (size,) * dimensions
        return NamedNetwork(network, _example(name, shape or (BATCH, channels, *size)), given)
    raise _unknown(name, timm, monai)


def import_factory(name: str) -> Callable[..., Any]:
    """The function or class that ``"module:factory"`` names, looked for in the current folder too.

    Raises:
        ModelError: the module cannot be imported, or has no such function.

    Example:
        >>> import_factory("torch.nn:Linear").__name__
        'Linear'
    """
    module_name, _, attribute = name.partition(":")
    module = _import_own(name, module_name)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        near = _nearest(attribute, [key for key, value in vars(module).items() if callable(value)])
        raise ModelError(f"{module_name} has no function or class {attribute!r}{near}; write module:factory")
    return factory  # type: ignore[no-any-return]  # it was looked up by name


def parse_shape(text: str) -> tuple[int, ...]:
    """Read ``"1,1,96,96,96"``.

    Raises:
        ModelError: it is not a list of whole numbers above 0.

    Example:
        >>> parse_shape("2,3,224,224")
        (2, 3, 224, 224)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ModelError(f"an input's shape is whole numbers above 0, as in 2,1,96,96,96, batch first; not {text!r}")
    return tuple(int(part) for part in parts)


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value is JSON or a Python literal, and any other text stands for itself.

    Raises:
        ModelError: a text is no pair.

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


def _from_factory(name: str, shape: tuple[int, ...] | None, arguments: Mapping[str, Any]) -> NamedNetwork:
    factory = import_factory(name)
    example = _example(name, shape)
    network = _construct(factory, name, arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} should make a torch.nn.Module, and made a {type(network).__name__}")
    return NamedNetwork(network, example, arguments)


def _import_own(name: str, module: str) -> ModuleType:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ModelError(f"{name}: the module {module!r} cannot be imported: {_said(error)}") from error
    finally:
        if added:
            sys.path.remove(here)


def _construct(factory: Callable[..., Any], name: str, arguments: Mapping[str, Any], before: Any = ()) -> Any:
    try:
        return factory(*before, **arguments)
    except Exception as error:
        raise ModelError(
            f"{name} cannot be made with the arguments {dict(arguments)}: {_said(error)}; give or change them with "
            "--arg key=value"
        ) from error


def _usual_arguments(factory: Callable[..., Any], shape: tuple[int, ...] | None) -> dict[str, Any]:
    """Values for what the constructor needs; with a given input, those that follow from its shape."""
    usual = dict(USUAL)
    if shape is not None and len(shape) > 2:
        usual |= {"spatial_dims": len(shape) - 2, "in_channels": shape[1], "img_size": shape[2:]}
    else:
        usual["img_size"] = (SIDES[3],) * 3
    parameters = inspect.signature(factory).parameters
    needed = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    follows = {"spatial_dims", "in_channels"} & set(parameters) if shape is not None else set()
    return {key: value for key, value in usual.items() if key in needed | follows}


def _default(factory: Callable[..., Any], key: str, otherwise: int) -> int:
    parameter = inspect.signature(factory).parameters.get(key)
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else otherwise


def _timm_plugin() -> Plugin:
    from layertune_timm import PLUGIN  # it describes timm without importing it

    return PLUGIN


def _timm_shape(network: Any, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """What the model takes: its own input size, but for the channels and the sides that it was made for.

    Its first convolution does not tell the channels: a TResNet's takes 16 times as many, a NaFlexViT has none.
    """
    size = getattr(network, "default_cfg", {}).get("input_size")
    if size is None:
        return None
    sides = arguments.get("img_size") or size[1:]
    return (BATCH, arguments.get("in_chans") or size[0], *(sides if isinstance(sides, Sequence) else (sides, sides)))


def _example(name: str, shape: tuple[int, ...] | None) -> Tensor:
    if not shape:
        raise ModelError(f"the input of {name} is not known; give its shape, batch first: --input 2,3,224,224")
    return torch.empty(shape)


def _host(plugin: Plugin, submodule: str = "") -> ModuleType | None:
    try:
        return import_host(plugin, submodule)
    except MissingPackageError:
        return None


def _unknown(name: str, timm: Any, monai: Any) -> Exception:
    missing = [plugin for plugin, host in ((_timm_plugin(), timm), (MONAI, monai)) if host is None]
    lines = ", ".join(f"{plugin.name} is not usable here: {plugin.install_line}" for plugin in missing)
    if len(missing) == 2:
        return MissingPackageError(f"{name} is a network of a host, and no host is installed: {lines}")
    networks = [key for key, value in vars(monai).items() if isinstance(value, type)] if monai is not None else []
    known = [*(timm.list_models() if timm is not None else []), *networks]
    hint = f" ({lines})" if lines else ""
    return ModelError(
        f"there is no network {name!r} in timm or MONAI{_nearest(name, known)}; write a name of theirs or "
        f"module:factory{hint}"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    by_lower = {key.lower(): key for key in known}
    near = [by_lower[key] for key in difflib.get_close_matches(name.lower(), list(by_lower), n=3)]
    return f"; the nearest: {', '.join(near)}" if near else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

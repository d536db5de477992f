"""Weights out of a file of any host, read without running code that the file carries."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from layertune.errors import WeightsError

__all__ = ["read_checkpoint", "read_weights", "state_dict_in"]

HOLDERS = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Keys under which files keep a state dict, in the order that they are asked for."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
REFUSED = re.compile(r"unsupported (?:global|class|type):? (?:global )?(\S+)", re.IGNORECASE)
DEEPEST = 3  # {"model": {"state_dict": {...}}} is the deepest that is seen


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the weights in a file: name -> tensor on the CPU, without the prefixes of wrappers.

    Takes a state dict alone, or in what nnU-Net (``network_weights``), Lightning and self-supervised pre-training
    (``state_dict``) and MONAI (``model``, ``network``) save around it, and safetensors. Nothing in the file is run:
    beside tensors and plain data, only NumPy's numbers and ``argparse.Namespace`` are let in. Names lose ``module.``
    (DataParallel, DDP) and ``_orig_mod.`` (``torch.compile``). Entries of the state dict that are no tensors are left.

    Args:
        file: as ``torch.save`` or safetensors (suffix ``.safetensors``) wrote it.

    Returns:
        The tensors in the file's order. Names that share one tensor in the file share it here.

    Raises:
        WeightsError: no such file; an empty or damaged one; one that holds objects that would have to be run, or no
            weights.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "weights.pt")
        >>> torch.save({"epoch": 3, "state_dict": {"module.fc.bias": torch.zeros(2)}}, file)
        >>> read_weights(file)
        {'fc.bias': tensor([0., 0.])}
    """
    path = Path(file)
    content = read_checkpoint(path)
    found = state_dict_in(content)
    if found is None:
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"{path} holds no weights: expected a dict of tensors, alone or under one of {', '.join(HOLDERS)}; it has "
            f"{keys or 'nothing'}"
        )
    return _without_wrappers(path, found)


def read_checkpoint(file: str | Path) -> Any:
    """All that a file holds, read without running code that it carries.

    Raises:
        WeightsError: as ``read_weights``, but for a file without weights.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "checkpoint.pth")
        >>> torch.save({"epoch": 3}, file)
        >>> read_checkpoint(file)
        {'epoch': 3}
    """
    path = Path(file)
    if not path.is_file():
        raise WeightsError(f"{path} is {'not a file' if path.exists() else 'not there'}; give a file with weights")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty; was it copied or downloaded to its end?")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(path, str(error))) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
        raise WeightsError(f"{path} is damaged, or no file of weights ({_first_line(error)})") from None


def state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The state dict in what a file holds: the tensors by name; ``None`` where there is none.

    Example:
        >>> state_dict_in({"epoch": 1, "model": {"fc.bias": torch.zeros(1), "fc._extra_state": None}})
        {'fc.bias': tensor([0.])}
    """
    return _search(content, DEEPEST)


def _search(content: Any, deepest: int) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or deepest == 0:
        return None
    for holder in HOLDERS:
        found = _search(content.get(holder), deepest - 1)
        if found:
            return found
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    # Names of parameters have dots, unless the network is one layer; a lone tensor beside other data is no network.
    others = [value for value in content.values() if isinstance(value, Mapping)]
    return tensors if tensors and (not others or any("." in name for name in tensors)) else None


def _without_wrappers(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # `module` is a name that networks use too; it is a wrapper's where all names begin with it.
    names = {name: [part for part in name.split(".") if part not in WRAPPERS[1:]] for name in weights}
    while all(parts[0] == WRAPPERS[0] and len(parts) > 1 for parts in names.values()):
        names = {name: parts[1:] for name, parts in names.items()}
    plain = {".".join(parts): weights[name] for name, parts in names.items()}
    if len(plain) < len(weights):
        raise WeightsError(f"{path} holds several weights of one name, once the prefixes of wrappers are taken off")
    return plain


def _harmless() -> list[Any]:
    """What checkpoints hold beside tensors and runs nothing: NumPy's numbers and arrays, and options of a script."""
    numbers = [np.dtype, np.ndarray, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
    functions: list[Any] = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    # Files name NumPy's modules as they were called when the file was written.
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    by_name = [(function, f"{module}.{function.__name__}") for function in functions for module in modules]
    return [*numbers, *by_name, argparse.Namespace]


def _refused(path: Path, message: str) -> str:
    found = REFUSED.search(message)
    if found is None:
        return f"{path} is damaged, or no file of weights ({_last_line(message)})"
    return (
        f"{path} holds more than weights: reading its {found[1]} would run code. If you trust where it comes from, "
        "save the state dict alone: torch.save(model.state_dict(), ...), or in safetensors"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _last_line(message: str) -> str:
    reason = message.partition("WeightsUnpickler error:")[2] or message
    return reason.strip().splitlines()[0] if reason.strip() else "it cannot be unpickled"

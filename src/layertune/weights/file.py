"""Read the weights in a file of any host, without running code that the file carries."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from layertune.errors import WeightsError
from layertune.weights.report import listed
from layertune.weights.state_dicts import HOLDERS, state_dict_in
from layertune.weights.torchscript import is_torchscript, read_torchscript

__all__ = ["read_checkpoint", "read_weights"]

REFUSED = re.compile(r"unsupported (?:global|class|type):? (?:global )?(\S+)", re.IGNORECASE)
CHUNK = 2**24  # bytes; an entry is read in parts, so that its check takes little memory


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the weights in a file: name -> tensor on the CPU, without the prefixes of wrappers.

    Reads a state dict alone, or in what nnU-Net (``network_weights``), Lightning and self-supervised pre-training
    (``state_dict``) and MONAI (``model``, ``network``) save around it; safetensors; and TorchScript archives, such as
    the ``model.ts`` of a MONAI bundle. Nothing in the file is run: besides tensors and plain data, only NumPy's numbers
    and ``argparse.Namespace`` are accepted. Names lose ``module.`` (DataParallel, DDP) and ``_orig_mod.``
    (``torch.compile``). Entries of the state dict that are no tensors are dropped.

    If a file holds several copies of a network with different weights, as a student and a teacher, all are returned,
    with the keys that lead to them before their names; ``load_weights(..., prefix=...)`` chooses one.

    Args:
        file: A file that ``torch.save``, ``torch.jit.save`` or safetensors (suffix ``.safetensors``) wrote.

    Returns:
        The tensors in the file's order. Names that share one tensor in the file share it here.

    Raises:
        WeightsError: There is no such file, or it cannot be read; it is empty or damaged; it holds objects that would
            have to be run, or no weights.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "weights.pt")
        >>> torch.save({"epoch": 3, "state_dict": {"module.fc.bias": torch.zeros(2)}}, file)
        >>> read_weights(file)
        {'fc.bias': tensor([0., 0.])}
    """
    path = Path(file)
    content = read_checkpoint(path)
    try:
        tensors = state_dict_in(content)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    if tensors is None:
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"{path} holds no weights: expected a dict of tensors, alone or under one of {', '.join(HOLDERS)}; it has "
            f"{keys or 'nothing'}"
        )
    return tensors


def read_checkpoint(file: str | Path) -> Any:
    """Read all that a file holds, without running code that it carries.

    Args:
        file: A file that ``torch.save``, ``torch.jit.save`` or safetensors (suffix ``.safetensors``) wrote.

    Raises:
        WeightsError: As ``read_weights``, but not for a file without weights.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "checkpoint.pth")
        >>> torch.save({"epoch": 3}, file)
        >>> read_checkpoint(file)
        {'epoch': 3}
    """
    path = Path(file)
    _require_content(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on how old or unusual a file is
            return _content(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # damaged bytes can raise anything in an unpickler
        raise WeightsError(f"{path} is damaged, or no file of weights ({_first_line(error)})") from error


def _require_content(path: Path) -> None:
    try:
        if not path.is_file():
            raise WeightsError(f"{path} is {'not a file' if path.exists() else 'not there'}; give a file with weights")
        if path.stat().st_size == 0:
            raise WeightsError(f"{path} is empty; was it copied or downloaded to its end?")
        with path.open("rb"):
            pass
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or error}); give a file in a folder that you may read"
        ) from error


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _compare_checksums(archive)
            if is_torchscript(archive):
                return read_torchscript(archive)
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise WeightsError(
                    f"it is a zip file that torch.save has not written (it holds {listed(archive.namelist())}); of a "
                    "program of torch.export, save torch.export.load(file).state_dict"
                )
    with torch.serialization.safe_globals(_harmless()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _compare_checksums(archive: zipfile.ZipFile) -> None:
    """Fail where the bytes of an entry have changed; ``torch.load`` does not look, and would return other weights."""
    for entry in archive.infolist():
        if entry.CRC:  # 0 if torch wrote without checksums, see torch.serialization.set_crc32_options
            with archive.open(entry) as content:
                while content.read(CHUNK):
                    pass


def _harmless() -> list[Any]:
    """List what checkpoints hold besides tensors and runs nothing: NumPy's numbers and arrays, a script's options."""
    numbers = [np.dtype, np.ndarray, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
    functions: list[Any] = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    # Files name NumPy's modules as they were called when the file was written.
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    by_name = [(function, f"{module}.{function.__name__}") for function in functions for module in modules]
    return [*numbers, *by_name, argparse.Namespace]


def _refusal(path: Path, message: str) -> str:
    match = REFUSED.search(message)
    if match is None:
        return f"{path} is damaged, or no file of weights ({_reason(message)})"
    return (
        f"{path} holds more than weights: reading its {match[1]} would run code. If you trust where it comes from, "
        "save the state dict alone: torch.save(model.state_dict(), ...), or in safetensors"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _reason(message: str) -> str:
    reason = message.partition("WeightsUnpickler error:")[2] or message
    return reason.strip().splitlines()[0] if reason.strip() else "it cannot be unpickled"

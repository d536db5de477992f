"""A profile on disk: JSON or safetensors, read without running code and written in one piece."""

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from layertune.errors import ProfileError
from layertune.files import write_file

__all__ = ["read_fields", "write_fields"]

FORMAT = "layertune.lr_profile"
VERSION = 1
LARGEST_FILE = 2**30  # bytes; a million steps of 30 layers in safetensors take half of it
FIELDS = ("layers", "depths", "steps", "scales", "lrs")
DTYPES = {"depths": np.int64, "steps": np.int64, "scales": np.float64, "lrs": np.float64}


def write_fields(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a profile's fields to ``path``, so that a reader finds the old file or the whole new one.

    Raises:
        ProfileError: The suffix is neither ``.json`` nor ``.safetensors``.
        SaveError: The folder is missing or cannot be written to.
    """
    content = _encode_json(fields) if _suffix(path) == ".json" else _encode_safetensors(fields)
    write_file(path, content)


def read_fields(path: Path) -> dict[str, Any]:
    """Read what ``write_fields`` wrote. Only the kind of the data is checked, not the values.

    Raises:
        ProfileError: There is no such file, or it is not a profile. The message names the file and what is wrong.
    """
    decode = _decode_json if _suffix(path) == ".json" else _decode_safetensors
    try:
        if not path.is_file():
            raise ProfileError("no such file" if not path.exists() else "not a file")
        if path.stat().st_size > LARGEST_FILE:
            raise ProfileError(f"larger than {LARGEST_FILE} bytes, which no profile is")
        return decode(path)
    except (ProfileError, OSError) as error:
        raise ProfileError(f"cannot load the profile {path}: {error}") from None


def _suffix(path: Path) -> str:
    if path.suffix not in (".json", ".safetensors"):
        raise ProfileError(f"a profile's file ends in .json or .safetensors, not {path.suffix!r} as in {path}")
    return path.suffix


def _encode_json(fields: Mapping[str, Any]) -> bytes:
    # Python writes the shortest digits that give the same float back, so nothing is rounded.
    document = {"format": FORMAT, "version": VERSION, **fields}
    return json.dumps(document, allow_nan=False).encode()


def _decode_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"not JSON that a profile could be ({error})") from None
    if not isinstance(document, dict):
        raise ProfileError(f"expected a JSON object, got {type(document).__name__}")
    _check_format(document.pop("format", None), document.pop("version", None), VERSION)
    _check_keys(document)
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a rate")


def _encode_safetensors(fields: Mapping[str, Any]) -> bytes:
    arrays = {name: np.array(fields[name], dtype=dtype) for name, dtype in DTYPES.items()}
    for name in ("scales", "lrs"):
        arrays[name] = arrays[name].reshape(len(fields["steps"]), len(fields["layers"]))
    metadata = {"format": FORMAT, "version": str(VERSION), "layers": json.dumps(list(fields["layers"]))}
    return safetensors_bytes(arrays, metadata)


def _decode_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            _check_format(metadata.get("format"), metadata.get("version"), str(VERSION))
            _check_keys(dict.fromkeys([*names, *(["layers"] if "layers" in metadata else [])]))
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError) as error:
        raise ProfileError(f"not a whole safetensors file of plain numbers ({error})") from None
    for name, dtype in DTYPES.items():
        if arrays[name].dtype != dtype:
            raise ProfileError(f"{name} must be of type {np.dtype(dtype)}, not {arrays[name].dtype}")
    try:
        layers = json.loads(metadata["layers"])
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"the names of the layers cannot be read ({error})") from None
    return {"layers": layers, **{name: array.tolist() for name, array in arrays.items()}}


def _check_format(found: object, version: object, expected: object) -> None:
    if found != FORMAT:
        raise ProfileError(f"expected the format {FORMAT!r}, got {short(found)}; another program wrote this file")
    if isinstance(version, bool) or version != expected:
        raise ProfileError(f"expected format version {VERSION}, got {short(version)}; update layertune to read it")


def _check_keys(document: Mapping[str, Any]) -> None:
    missing = [name for name in FIELDS if name not in document]
    unknown = sorted(set(document) - set(FIELDS))
    if missing or unknown:
        raise ProfileError(f"expected the fields {', '.join(FIELDS)}; missing {missing}, unknown {short(unknown)}")

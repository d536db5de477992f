"""The demo's folder: every finished piece of work lies in a file of its own, so that a second start goes on."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from layertune.files import write_file
from layertune_studies.errors import FolderError

__all__ = ["Store"]

OPTIONS = "options.json"


class Store:
    """Pieces of work by name, written whole or not at all.

    Args:
        folder: made if it is not there.
        options: what the pieces depend on; plain JSON values.

    Raises:
        FolderError: the folder holds a run with other options, or other things, or cannot be made.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()), {"seed": 0})
        >>> store.save("piece", {"loss": torch.tensor(0.5)})
        >>> store.load("piece"), store.load("another")
        ({'loss': tensor(0.5000)}, None)
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.folder = folder
        wanted = json.loads(json.dumps(options))
        if (folder / OPTIONS).is_file():
            _check_options(folder, _read_options(folder), wanted)
            return
        if folder.is_dir() and any(folder.iterdir()):
            raise FolderError(f"{folder} is not empty and holds no demo; give another folder with --out")
        try:
            (folder / "pieces").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"{folder} cannot be a folder ({error.strerror}); give another with --out") from error
        self.write(OPTIONS, json.dumps(wanted, indent=2) + "\n")

    def load(self, name: str) -> Any:
        """A piece, or ``None`` where there is none yet."""
        path = self._path(name)
        return torch.load(path, weights_only=True) if path.is_file() else None

    def save(self, name: str, piece: Any) -> None:
        """Keep a piece; a run that is interrupted while it writes leaves the former one."""
        path = self._path(name)
        write_file(path, partial(torch.save, piece), only_writer=True)

    def forget(self, name: str) -> None:
        """Drop a piece that a later one has replaced."""
        self._path(name).unlink(missing_ok=True)

    def write(self, name: str, text: str) -> Path:
        """Write a text file into the folder, whole or not at all."""
        path = self.folder / name
        write_file(path, text, only_writer=True)
        return path

    def _path(self, name: str) -> Path:
        return self.folder / "pieces" / f"{name}.pt"


def _read_options(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(
            f"{folder / OPTIONS} cannot be read ({type(error).__name__}: {error}), so nothing is known of the demo in "
            "this folder; give another folder with --out, or remove this one"
        ) from error
    if not isinstance(held, dict):
        raise FolderError(f"{folder / OPTIONS} holds no options of a demo; give another folder with --out")
    return held


def _check_options(folder: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    if wanted and not held.keys() & wanted.keys():
        raise FolderError(f"{folder / OPTIONS} holds no options of a demo; give another folder with --out")
    keys = sorted(held.keys() | wanted.keys())
    other = [f"{key} {held.get(key)} (now {wanted.get(key)})" for key in keys if held.get(key) != wanted.get(key)]
    if other:
        raise FolderError(
            f"{folder} holds a demo with other options: {', '.join(other)}; give another folder with --out, or remove "
            "this one"
        )

"""The folder of a study: one file per trial, each written whole or not at all, and one run at a time."""

import contextlib
import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from layertune.files import write_file
from layertune_studies.errors import DiskError, FolderError

__all__ = ["DEPTHS", "StudyStore"]

DEPTHS = "network_"
"""How the names of files begin that hold the depths of a network. They take no training to make."""


class StudyStore:
    """Keep the results of trials in a folder, by name.

    Args:
        folder: The folder. It is made when something is written.

    Example:
        >>> import tempfile
        >>> store = StudyStore(Path(tempfile.mkdtemp()))
        >>> store.save("trial", {"validation": {"accuracy": 0.5}})
        >>> store.load("trial"), store.load("another")
        ({'validation': {'accuracy': 0.5}}, None)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self._made: list[Path] = []

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against a second run of the study; the lock ends with the process that holds it.

        A run that fails before it has a result leaves no folder behind.

        Raises:
            FolderError: Another run holds the lock, or the folder cannot be made.
        """
        self._make_folder()
        lock = FileLock(str(self.folder / "running.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise FolderError(
                f"another run of this study is working in {self.folder}; wait for it, or give another folder with --out"
            ) from error
        except OSError as error:
            raise _folder_error(error, self.folder) from error
        try:
            yield
        except BaseException:
            self.discard_empty()
            raise
        finally:
            lock.release()

    @property
    def is_empty(self) -> bool:
        """Whether no result of a training is kept."""
        return not self.results.is_dir() or all(path.name.startswith(DEPTHS) for path in self.results.iterdir())

    def discard_empty(self) -> None:
        """Remove the folders that were made for this store, if they hold no result."""
        if self._made and self.is_empty:
            with contextlib.suppress(OSError):  # a folder that holds other things stays
                for path in self.results.glob(f"{DEPTHS}*"):
                    path.unlink()
                (self.folder / "running.lock").unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()

    def load(self, name: str) -> dict[str, Any] | None:
        """Return the result of a trial, or None if there is none yet.

        Raises:
            FolderError: The file is damaged.
        """
        path = self.results / f"{name}.json"
        if not path.is_file():
            return None
        try:
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FolderError(f"{path} cannot be read ({error}); remove it, and its trial is run again") from error
        return held

    def save(self, name: str, result: dict[str, Any]) -> None:
        """Write the result of a trial; its network, if there is one, is written first.

        Raises:
            DiskError: The disk is full; no part of the result is left.
        """
        if "network" in result:
            self.save_tensors(name, result["network"])
        plain = {key: value for key, value in result.items() if key != "network"}
        self.write(self.results / f"{name}.json", json.dumps(plain) + "\n")

    def tensors(self, name: str) -> Path:
        """Return the path of a trial's tensors, whether or not they are there."""
        return self.results / f"{name}.pt"

    def load_tensors(self, name: str) -> Any:
        """Return tensors by name, or None if there are none yet."""
        path = self.tensors(name)
        return torch.load(path, weights_only=True) if path.is_file() else None

    def save_tensors(self, name: str, tensors: Any) -> None:
        """Write tensors by name.

        Raises:
            DiskError: The disk is full.
        """
        content = io.BytesIO()  # torch's own writer hides why a disk refuses
        torch.save(tensors, content)
        self.write(self.tensors(name), content.getvalue())

    def write(self, path: Path, content: str | bytes) -> None:
        """Write a file of the study's folder whole or not at all.

        Raises:
            DiskError: The disk is full.
            FolderError: The file cannot be written.
        """
        self._make_folder()
        try:
            write_file(path, content, only_writer=True)  # a run holds the lock of its folder
        except OSError as error:
            raise _folder_error(error, path) from error

    def _make_folder(self) -> None:
        missing = [folder for folder in (self.results, *self.results.parents) if not folder.exists()]
        try:
            self.results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _folder_error(error, self.results) from error
        self._made = self._made or missing


def _folder_error(error: OSError, path: Path) -> FolderError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"the disk is full: {path} was not written; make room and give the same command again, what is finished "
            "is kept"
        )
    return FolderError(f"{path} cannot be written ({error.strerror}); give another folder with --out")

"""A study's folder: a file a trial, written whole or not at all, and one run at a time."""

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

__all__ = ["StudyStore"]


class StudyStore:
    """Results of trials by name.

    Args:
        folder: made if it is not there.

    Raises:
        FolderError: it cannot be a folder.

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
        try:
            self.results.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _told(error, self.results) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run of the study out; the lock goes with the process that holds it.

        Raises:
            FolderError: another run holds it.
        """
        lock = FileLock(str(self.folder / "running.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise FolderError(
                f"another run of this study is at work in {self.folder}; wait for it, or give another folder with --out"
            ) from error
        except OSError as error:
            raise _told(error, self.folder) from error
        try:
            yield
        finally:
            lock.release()

    def load(self, name: str) -> dict[str, Any] | None:
        """A trial's result, or ``None`` where there is none yet.

        Raises:
            FolderError: the file is damaged.
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
        """Keep a trial's result; its network, if it is kept, is written first.

        Raises:
            DiskError: the disk is full; nothing of the result is left behind.
        """
        if "network" in result:
            self.save_tensors(name, result["network"])
        plain = {key: value for key, value in result.items() if key != "network"}
        self.write(self.results / f"{name}.json", json.dumps(plain) + "\n")

    def tensors(self, name: str) -> Path:
        """Where a trial's tensors lie, or would."""
        return self.results / f"{name}.pt"

    def load_tensors(self, name: str) -> Any:
        """Tensors by name, or ``None`` where there are none yet."""
        path = self.tensors(name)
        return torch.load(path, weights_only=True) if path.is_file() else None

    def save_tensors(self, name: str, tensors: Any) -> None:
        """Keep tensors by name.

        Raises:
            DiskError: the disk is full.
        """
        content = io.BytesIO()  # torch's own writer hides why a disk refuses
        torch.save(tensors, content)
        self.write(self.tensors(name), content.getvalue())

    def write(self, path: Path, content: str | bytes) -> None:
        """Write a file of the study's folder whole or not at all.

        Raises:
            DiskError: The disk is full.
        """
        try:
            write_file(path, content, only_writer=True)  # a run holds the lock of its folder
        except OSError as error:
            raise _told(error, path) from error


def _told(error: OSError, path: Path) -> FolderError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"the disk is full: {path} was not written; make room and give the same command again, what is finished "
            "is kept"
        )
    return FolderError(f"{path} cannot be written ({error.strerror}); give another folder with --out")

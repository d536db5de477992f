"""Write a file whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from layertune.errors import SaveError

__all__ = ["replace_file", "write_file"]


def write_file(path: str | Path, content: str | bytes | Callable[[Path], object], *, only_writer: bool = False) -> None:
    """Write a file so that a reader finds the old file or the whole new one, also after a power cut.

    The content goes into a temporary file in the same folder, which takes the file's name when it is complete and on
    the disk.

    Args:
        path: The file. Its folder must exist.
        content: A text, which is encoded in UTF-8; bytes; or a function that writes to the path that it gets, as
            ``partial(torch.save, tensors)``. If the function writes nothing, the file stays as it is.
        only_writer: Whether no other process writes this file at the same time. Then the temporary file always has the
            same name, so that the next call overwrites what a killed process has left. Set it for large files.

    Raises:
        SaveError: The file cannot be written, for example because its folder is missing or the disk is full. A function
            may raise other errors. In each case the old file stays, and the temporary file is removed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "notes.txt")
        >>> write_file(file, "one line")
        >>> file.read_text()
        'one line'
    """
    path = Path(path)
    # The same folder, since a file cannot be renamed in one piece across file systems.
    temporary = path.with_name(f".{path.name}.{'part' if only_writer else uuid4().hex[:8]}")
    if not path.parent.is_dir():  # named here, since a function may answer it with an error of its own
        raise _save_error(path, OSError(errno.ENOENT, f"there is no folder {path.parent}"), "make the folder, or give")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        if temporary.exists():
            replace_file(temporary, path)
    except OSError as error:
        raise _save_error(path, error, "give") from error
    finally:
        with contextlib.suppress(OSError):  # it would hide the error of the write
            temporary.unlink(missing_ok=True)


def _save_error(path: Path, error: OSError, advice: str) -> SaveError:
    """Return the error about the file itself, where the system's names the temporary file."""
    explained = SaveError(f"{path} cannot be written ({error.strerror or error}); {advice} another path")
    explained.errno, explained.strerror = error.errno, error.strerror
    return explained


def replace_file(complete: Path, path: Path) -> None:
    """Give a complete file the name of another one, which it replaces, when it is on the disk.

    Args:
        complete: The complete file, in the same file system.
        path: The file that it replaces.
    """
    with complete.open("rb+") as file:
        os.fsync(file.fileno())
    complete.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the new name onto the disk, where the system can: Windows and some network file systems cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

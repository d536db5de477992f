"""A file is written whole or not at all."""

import errno
import os
import stat
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from layertune import SaveError
from layertune.files import write_file


@pytest.mark.parametrize("content", ["ä\n", "ä\n".encode(), lambda path: path.write_bytes("ä\n".encode())])
@pytest.mark.parametrize("only_writer", [False, True])
def test_texts_bytes_and_functions_are_written(tmp_path: Path, content: object, only_writer: bool) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    write_file(str(file), content, only_writer=only_writer)
    assert file.read_bytes() == b"\xc3\xa4\n"
    assert list(tmp_path.iterdir()) == [file]


def test_torch_saves_through_it(tmp_path: Path) -> None:
    write_file(tmp_path / "weights.pt", partial(torch.save, {"weight": torch.ones(2)}))
    assert torch.equal(torch.load(tmp_path / "weights.pt")["weight"], torch.ones(2))


@pytest.mark.parametrize("only_writer", [False, True])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, only_writer: bool) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_file(file, fail, only_writer=only_writer)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "old")]


def test_a_full_disk_is_reported_before_the_old_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may report that it is full as late as when the file is brought onto the disk."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "file.txt"
    file.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(file, "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "old")]


def test_the_content_is_on_the_disk_before_the_name_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        steps.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_file(tmp_path / "file.txt", "new")
    assert steps == ["file", "name", "folder"][: 2 if os.name == "nt" else 3]


def test_a_function_that_writes_nothing_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    write_file(file, lambda _: None)
    assert file.read_text() == "old"


def test_the_only_writer_overwrites_what_a_killed_process_has_left(tmp_path: Path) -> None:
    names: list[str] = []
    write_file(tmp_path / "file.txt", lambda path: (names.append(path.name), path.write_text("")), only_writer=True)
    (tmp_path / names[0]).write_text("half")
    write_file(tmp_path / "file.txt", "whole", only_writer=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "whole")]


def test_several_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    file, whole = tmp_path / "file.txt", {f"{number}" * 10_000 for number in range(8)}
    threads = [threading.Thread(target=write_file, args=(file, content)) for content in whole]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in whole
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"file.txt cannot be written \(there is no folder .*nowhere\); make"):
        write_file(tmp_path / "nowhere" / "file.txt", "new")


def test_a_refused_file_is_named_and_not_its_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: bytes) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(SaveError, match=r"file.txt cannot be written \(Permission denied\)") as caught:
        write_file(tmp_path / "file.txt", "new")
    assert (caught.value.errno, ".file.txt." in str(caught.value)) == (errno.EACCES, False)

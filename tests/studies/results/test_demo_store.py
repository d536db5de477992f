from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from layertune.cli.app import app
from layertune_studies.demo_store import Store
from layertune_studies.errors import FolderError


def test_a_piece_comes_back_as_it_was(tmp_path: Path) -> None:
    piece = {"weights": torch.randn(3, generator=torch.Generator().manual_seed(0)), "losses": [0.1, 0.2], "none": None}
    Store(tmp_path / "run", {"size": (16, 16)}).save("piece", piece)
    held = Store(tmp_path / "run", {"size": (16, 16)}).load("piece")
    assert torch.equal(held["weights"], piece["weights"])
    assert (held["losses"], held["none"]) == ([0.1, 0.2], None)


def test_other_options_are_named_and_refused(tmp_path: Path) -> None:
    Store(tmp_path, {"steps": 4, "seed": 0})
    with pytest.raises(FolderError, match=r"other options: steps 4 \(now 5\); give another folder"):
        Store(tmp_path, {"steps": 5, "seed": 0})


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FolderError, match="not empty and holds no demo"):
        Store(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FolderError, match=r"cannot be a folder .*; give another with --out"):
        Store(tmp_path / "taken" / below, {})
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"steps": 4, "se', "cannot be read", id="cut off"),
        pytest.param(b"\xff\xfe\x00", "cannot be read", id="no text"),
        pytest.param(b"[" * 100_000, "cannot be read", id="nested without end"),
        pytest.param(b"[1, 2]", "holds no options of a demo", id="a list"),
        pytest.param(b'{"theme": "dark"}', "holds no options of a demo", id="another program's"),
    ],
)
def test_damaged_and_foreign_options_are_refused_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "options.json").write_bytes(content)
    with pytest.raises(FolderError, match=f"options.json {message}.*give another folder"):
        Store(tmp_path, {"steps": 4})
    assert (tmp_path / "options.json").read_bytes() == content


def test_the_command_answers_a_folder_that_it_cannot_use_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "options.json").write_text("{")
    for out in (tmp_path / "taken", tmp_path):
        result = CliRunner().invoke(app, ["demo", "--out", str(out)])
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"layertune: {out}")


def test_an_interrupted_write_leaves_the_former_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, {})
    store.save("piece", {"step": 1})

    def interrupted(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.save("piece", {"step": 2})
    assert store.load("piece") == {"step": 1}
    store.save("piece", {"step": 2})
    assert store.load("piece") == {"step": 2}


def test_a_forgotten_piece_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path, {})
    store.save("piece", {"step": 1})
    store.forget("piece")
    store.forget("piece")
    assert store.load("piece") is None

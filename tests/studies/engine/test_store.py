"""The folder of a study is made when something is written, and a refused run leaves none behind."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from layertune.errors import LayertuneError
from layertune_studies.config.study import Study
from layertune_studies.engine.run import run_study
from layertune_studies.engine.store import StudyStore
from layertune_studies.errors import FolderError
from study_runs import study_of, write_images


def test_a_store_makes_no_folder_before_it_is_written_to(tmp_path: Path) -> None:
    store = StudyStore(tmp_path / "out")
    assert (store.load("trial"), store.load_tensors("trial"), store.is_empty) == (None, None, True)
    assert list(tmp_path.iterdir()) == []
    store.save("trial", {})
    assert not store.is_empty


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"data": {"set": "hippocampus", "size": [8, 8, 8], "labelled": [2]}}, id="no data"),
        pytest.param({"metrics": ["acuracy"]}, id="an unknown metric"),
        pytest.param({"methods": [{"kind": "layer-wise", "first": [11], "lr": [0.1]}]}, id="a depth too many"),
    ],
)
def test_a_refused_run_leaves_no_folder(tmp_path: Path, changes: dict) -> None:
    write_images(tmp_path / "data")
    study = Study.model_validate(study_of(**({"metrics": ["dice"]} if "data" in changes else {}), **changes))
    with pytest.raises(LayertuneError):
        run_study(study, tmp_path / "studies" / "small", tmp_path / "data", console=Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_refused_run_leaves_a_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(LayertuneError):
        run_study(Study.model_validate(study_of()), tmp_path / "out", None, console=Console(file=io.StringIO()))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_fails_keeps_its_results(tmp_path: Path) -> None:
    store = StudyStore(tmp_path / "out")

    def fail() -> None:
        with store.locked():
            store.save("trial", {"value": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert store.load("trial") == {"value": 1}


def test_a_second_run_that_is_refused_leaves_the_first_ones_folder(tmp_path: Path) -> None:
    first, second = StudyStore(tmp_path / "out"), StudyStore(tmp_path / "out")
    with first.locked():
        with pytest.raises(FolderError), second.locked():
            pass
        assert first.results.is_dir()

"""The study on nnU-Net: data sets as nnU-Net wants them, a smaller plan, and runs that go on where they were."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from layertune_studies import hippocampus_nnunet as study
from layertune_studies import hippocampus_nnunet_data as data
from layertune_studies.errors import DataError
from layertune_studies.hippocampus_nnunet import METHODS, PRETRAINED, Options, run_study
from layertune_studies.training.nnunet import dice_of
from nnunet_runs import plans


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Six small cases in the Decathlon's manner."""
    folder = tmp_path / "Task04_Hippocampus"
    random = np.random.default_rng(0)
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
        for case in range(6):
            values = random.integers(0, 200 if kind == "imagesTr" else 3, (4, 5, 6)).astype(np.uint8)
            nib.nifti1.save(nib.nifti1.Nifti1Image(values, np.eye(4)), folder / kind / f"case_{case}.nii.gz")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.iterdir()}


def values(file: Path) -> np.ndarray:
    return np.asarray(nib.nifti1.load(file).dataobj)


def test_no_case_is_used_twice_and_the_source_is_inverted(task: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    data.write_datasets(task, raw, source=3, shots=1, test=2, seed=0)
    source, shots, test = (
        names(raw / part) for part in (f"{data.SOURCE}/imagesTr", f"{data.TARGET}/imagesTr", f"{data.TARGET}/imagesTs")
    )
    assert (len(source), len(shots), len(test)) == (3, 1, 2)
    assert len(source | shots | test) == 6
    assert names(raw / data.TARGET / "labelsTs") == test
    case = next(iter(source))
    original = values(task / "imagesTr" / f"{case}.nii.gz").astype(float)
    inverted = values(raw / data.SOURCE / "imagesTr" / f"{case}_0000.nii.gz")
    np.testing.assert_allclose(inverted, original.max() + original.min() - original)
    for kept in (*shots, *test):
        part = "Tr" if kept in shots else "Ts"
        written = values(raw / data.TARGET / f"images{part}" / f"{kept}_0000.nii.gz")
        np.testing.assert_array_equal(written, values(task / "imagesTr" / f"{kept}.nii.gz"))
    assert json.loads((raw / data.SOURCE / "dataset.json").read_text())["numTraining"] == 3


def test_too_few_cases_are_named(task: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 6 cases, and 9 are needed"):
        data.write_datasets(task, tmp_path / "raw", source=5, shots=1, test=3, seed=0)
    with pytest.raises(DataError, match="holds 0 cases"):
        data.write_datasets(tmp_path / "nowhere", tmp_path / "raw", source=5, shots=1, test=3, seed=0)


def test_the_smaller_plan_differs_in_what_it_says() -> None:
    whole = plans()
    small = data._smaller(whole, 2)
    assert whole == plans()
    assert list(small["configurations"]) == ["3d_fullres"]
    setting = small["configurations"]["3d_fullres"]
    assert setting["architecture"]["arch_kwargs"]["features_per_stage"] == [2, 4, 4]
    assert (setting["batch_size"], setting["patch_size"]) == (data.BATCH, list(data.PATCH))
    assert small["plans_name"] == data.PLANS
    assert setting["data_identifier"] == f"{data.PLANS}_3d_fullres"


def test_dice_is_that_of_the_formula(tmp_path: Path) -> None:
    truth, found = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[0], found[0, :2], found[1, :2] = 1, 1, 1
    truth[3], found[3] = 2, 2
    for folder, array in (("labels", truth), ("found", found)):
        (tmp_path / folder).mkdir()
        nib.nifti1.save(nib.nifti1.Nifti1Image(array, np.eye(4)), tmp_path / folder / "case.nii.gz")
    dice = dice_of(tmp_path / "found", tmp_path / "labels", {"one": 1, "two": 2})
    assert dice == pytest.approx({"one": 2 * 8 / (16 + 16), "two": 1.0, "mean": 0.75})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The study with nnU-Net's work left out; what it was asked to train."""
    asked: list[Any] = []

    def train(training: Any) -> float:
        asked.append(training)
        if training.seed == 2 and training.trainer.endswith("Streaming") and asked.count(training) == 1:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(study, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(study, "train", train)
    monkeypatch.setattr(study, "predict", lambda *_: None)
    monkeypatch.setattr(study, "dice_of", lambda *_: {"anterior": 0.5, "posterior": 0.6, "mean": 0.55})
    monkeypatch.setattr(study, "draw", lambda *_: None)
    return asked


def test_an_interrupted_study_goes_on_where_it_was(trained: list[Any], tmp_path: Path) -> None:
    options = Options(epochs=2)
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, tmp_path / "out", options)
    done = len(trained)
    partial = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in partial["rows"]] == [PRETRAINED, *METHODS][: len(partial["rows"])]
    assert partial["rows"][-1]["method"] == "MetaLR, streaming"
    results = run_study(tmp_path, tmp_path / "out", options)
    # The interrupted training is begun again, all before it are not.
    assert len(trained) == 1 + len(METHODS) * options.seeds + 1
    assert trained[done] == trained[done - 1]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert [row["method"] for row in results["rows"]] == [PRETRAINED, *METHODS]
    assert all(row["mean"] == [0.55] * options.seeds for row in results["rows"][1:])


def test_all_but_one_method_start_from_the_pretrained_weights(trained: list[Any], tmp_path: Path) -> None:
    run_study(tmp_path, tmp_path / "out", Options(seeds=1))
    first, *others, scratch = trained
    assert (first.dataset, first.pretrained) == (data.SOURCE, None)
    weights = tmp_path / "out" / "results" / data.SOURCE
    assert all(other.pretrained.parents[2] == weights for other in others)
    assert {other.dataset for other in [*others, scratch]} == {data.TARGET}
    assert scratch.pretrained is None
    assert [one.trainer for one in (*others, scratch)] == list(METHODS.values())

"""The cases of a study as nnU-Net's data sets, and the plan with the study's numbers."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from layertune_studies.config.study import Study
from layertune_studies.data import nnunet
from layertune_studies.data.cases import Cases, load_cases
from layertune_studies.data.nnunet import CONFIGURATION, PLANS, SOURCE, TARGET, prepare, write_datasets
from layertune_studies.errors import DataError, StudyError
from nnunet_runs import plans
from study_runs import nnunet_study, volumes


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    """Eight small cases, of which the study uses seven."""
    return load_cases(study().data, volumes(tmp_path, count=8))


def study(**changes: Any) -> Study:
    return Study.model_validate(nnunet_study(**changes))


def names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.iterdir()}


def values(file: Path) -> np.ndarray:
    return np.asarray(nib.nifti1.load(file).dataobj)


def test_no_case_is_used_twice_and_the_source_is_inverted(cases: Cases, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    assert set(write_datasets(study(), cases, raw)) == {SOURCE, TARGET}
    folders = (f"{SOURCE}/imagesTr", f"{TARGET}/imagesTr", f"{TARGET}/imagesVa", f"{TARGET}/imagesTs")
    source, labelled, validation, test = (names(raw / folder) for folder in folders)
    assert [len(part) for part in (source, labelled, validation, test)] == [2, 2, 1, 2]
    assert len(source | labelled | validation | test) == 7
    assert names(raw / TARGET / "labelsTs") == test
    assert names(raw / TARGET / "labelsVa") == validation
    for case in source:
        original = values(tmp_path / "volumes" / "imagesTr" / f"{case}.nii.gz")
        inverted = values(raw / SOURCE / "imagesTr" / f"{case}_0000.nii.gz")
        np.testing.assert_allclose(inverted, original.max() + original.min() - original)
    for part, kept in (("Tr", labelled), ("Va", validation), ("Ts", test)):
        for case in kept:
            written = values(raw / TARGET / f"images{part}" / f"{case}_0000.nii.gz")
            np.testing.assert_array_equal(written, values(tmp_path / "volumes" / "imagesTr" / f"{case}.nii.gz"))
    described = json.loads((raw / SOURCE / "dataset.json").read_text())
    assert (described["numTraining"], described["labels"]) == (2, {"background": 0, "class 1": 1})


def test_without_pretraining_there_is_no_source(cases: Cases, tmp_path: Path) -> None:
    assert write_datasets(study(pretraining={}), cases, tmp_path / "raw") == [TARGET]


def test_too_few_cases_are_named(cases: Cases, tmp_path: Path) -> None:
    config = study(pretraining={"task": "inverted", "cases": 3})
    with pytest.raises(DataError, match=r"2 labelled cases were asked for, and there are 1 .*after 3 for pre-training"):
        write_datasets(config, cases, tmp_path / "raw")


def test_the_plan_has_the_studys_patch_batch_and_width() -> None:
    whole = plans()
    changed = nnunet._changed(whole, study())
    assert whole == plans()
    assert list(changed["configurations"]) == [CONFIGURATION]
    setting = changed["configurations"][CONFIGURATION]
    assert setting["architecture"]["arch_kwargs"]["features_per_stage"] == [2, 4, 4]
    assert (setting["batch_size"], setting["patch_size"]) == (2, [8, 8, 8])
    assert changed["plans_name"] == PLANS
    assert setting["data_identifier"] == f"{PLANS}_{CONFIGURATION}"


def test_a_command_that_fails_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\necho why; exit 3\n")
    (tmp_path / "program").chmod(0o755)
    monkeypatch.setattr(nnunet.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StudyError, match=rf"program failed with exit code 3; {tmp_path}/log.txt says why"):
        nnunet._run("program", folder=tmp_path)
    assert (tmp_path / "log.txt").read_text() == "why\n"


def test_an_interrupted_preparation_is_begun_again_and_a_whole_one_is_kept(
    cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commands = tmp_path / "out", []

    def run(name: str, *_: str, folder: Path) -> None:
        commands.append(name)
        if name.endswith("plan_experiment"):
            (folder / "preprocessed" / TARGET).mkdir(parents=True)
            (folder / "preprocessed" / SOURCE).mkdir()
            (folder / "preprocessed" / TARGET / "nnUNetPlans.json").write_text(json.dumps(plans()))
        if name.endswith("preprocess") and commands.count(name) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(nnunet, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        prepare(study(), cases, folder)
    (folder / "left").touch()
    prepare(study(), cases, folder)
    assert not (folder / "left").exists()
    prepare(study(), cases, folder)
    assert commands.count("nnUNetv2_preprocess") == 2

"""The cases of a study as nnU-Net's data sets: one to pre-train on, and one to fine-tune on and to evaluate."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from layertune_studies.config.sets import SETS
from layertune_studies.config.study import Study
from layertune_studies.data.cases import Cases, draw
from layertune_studies.errors import StudyError

__all__ = ["CONFIGURATION", "PLANS", "SOURCE", "TARGET", "environment", "prepare", "write_datasets"]

SOURCE = "Dataset501_Source"
TARGET = "Dataset502_Target"
PLANS = "nnUNetPlansStudy"
CONFIGURATION = "3d_fullres"
PREPARED_MARK = "prepared"


def environment(folder: Path, results: str) -> dict[str, str]:
    """Return nnU-Net's environment variables: everything is below a folder, and nothing is compiled.

    Args:
        folder: The folder of nnU-Net's data.
        results: Name of the folder for trained networks below it.
    """
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": results}
    return {"nnUNet_compile": "f", **{key: str(folder / name) for key, name in folders.items()}}


def prepare(study: Study, cases: Cases, folder: Path) -> None:
    """Write the data sets, plan the network and preprocess the cases, unless all that is done.

    The plan is made from the labelled cases, as nnU-Net's guide to fine-tuning has it, and serves both data sets.

    Args:
        study: The study, whose loop is nnU-Net.
        cases: The cases of the study.
        folder: The folder of nnU-Net's data; it is made.

    Raises:
        DataError: There are not as many cases as are asked for.
        StudyError: A command of nnU-Net failed; the message names its log.
    """
    if (folder / PREPARED_MARK).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    names = write_datasets(study, cases, folder / "raw")
    numbers = [name[7:10] for name in names]
    _run("nnUNetv2_extract_fingerprint", "-d", *numbers, "-np", "1", folder=folder)
    _run("nnUNetv2_plan_experiment", "-d", TARGET[7:10], folder=folder)
    planned = folder / "preprocessed" / TARGET
    plans = json.loads((planned / "nnUNetPlans.json").read_text(encoding="utf-8"))
    (planned / f"{PLANS}.json").write_text(json.dumps(_changed(plans, study), indent=4), encoding="utf-8")
    if SOURCE in names:
        move = ("-s", TARGET[7:10], "-t", SOURCE[7:10], "-sp", PLANS, "-tp", PLANS)
        _run("nnUNetv2_move_plans_between_datasets", *move, folder=folder)
        # Planning would have copied this file, but this data set has no plan of its own.
        shutil.copy(folder / "raw" / SOURCE / "dataset.json", folder / "preprocessed" / SOURCE)
    _run("nnUNetv2_preprocess", "-d", *numbers, "-plans_name", PLANS, "-c", CONFIGURATION, "-np", "1", folder=folder)
    (folder / PREPARED_MARK).touch()


def write_datasets(study: Study, cases: Cases, raw: Path) -> list[str]:
    """Write the cases as nnU-Net reads them.

    The target's training cases are the labelled cases. Its validation cases go into ``imagesVa`` and ``labelsVa``, its
    test cases into ``imagesTs`` and ``labelsTs``. The source has the cases to pre-train on, their intensities inverted.

    Args:
        study: The study, which says how the cases are split and drawn.
        cases: The cases of the study.
        raw: nnU-Net's folder of raw data.

    Returns:
        The names of the data sets.
    """
    reserved = study.pretraining.cases if study.pretraining.task else 0
    selection = draw(cases, study.data.labelled[0], seed=0, reserved=reserved, disjoint=study.data.draw == "disjoint")
    parts: dict[str, Mapping[str, Sequence[Any]]] = {
        TARGET: {"Tr": selection.train, "Va": cases.validation, "Ts": cases.test},
        **({SOURCE: {"Tr": cases.train[:reserved]}} if reserved else {}),
    }
    for name, by_part in parts.items():
        for part, part_cases in by_part.items():
            for number in part_cases.numbers:  # type: ignore[attr-defined]  # the parts of a data set are LazyCases
                _write_case(cases.paths[number], raw / name, part=part, inverted=name == SOURCE)
        _describe(study, cases, raw / name, len(by_part["Tr"]))
    return list(parts)


def _describe(study: Study, cases: Cases, folder: Path, count: int) -> None:
    names = SETS[study.data.set].classes or ("background", *(f"class {n}" for n in range(1, cases.classes)))
    description = {
        "channel_names": {str(channel): "MRI" for channel in range(cases.shape[0])},
        "labels": {name: number for number, name in enumerate(names)},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=4), encoding="utf-8")


def _write_case(path: Path, dataset: Path, *, part: str, inverted: bool) -> None:
    """Write one case, with a file for each channel."""
    name = path.name.partition(".")[0]
    image = nib.nifti1.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    label = np.asarray(nib.nifti1.load(path.parents[1] / "labelsTr" / path.name).dataobj, np.uint8)
    channels = values[..., None] if values.ndim == 3 else values
    for number in range(channels.shape[-1]):
        channel = channels[..., number]
        turned = channel.max() + channel.min() - channel if inverted else channel
        _save(turned, image.affine, dataset / f"images{part}" / f"{name}_{number:04d}.nii.gz")
    _save(label, image.affine, dataset / f"labels{part}" / f"{name}.nii.gz")


def _save(values: Any, affine: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.nifti1.save(nib.nifti1.Nifti1Image(values, affine), path)


def _changed(plans: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """Return the plan with the study's patch, batch and number of features, and preprocessed data of its own."""
    setting = json.loads(json.dumps(plans["configurations"][CONFIGURATION]))
    arguments, narrower = setting["architecture"]["arch_kwargs"], int(study.network.arguments.get("narrower", 1))
    arguments["features_per_stage"] = [features // narrower for features in arguments["features_per_stage"]]
    setting |= {"batch_size": study.budget.batch, "data_identifier": f"{PLANS}_{CONFIGURATION}"}
    if study.data.patch is not None:
        setting["patch_size"] = list(study.data.patch)
    return {**plans, "plans_name": PLANS, "configurations": {CONFIGURATION: setting}}


def _run(name: str, *arguments: str, folder: Path) -> None:
    """Run one of nnU-Net's commands in one process; its output goes to the end of ``log.txt``."""
    # Planning fails with 0 processes for augmentation.
    variables = {**os.environ, **environment(folder, "results"), "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    program, log = Path(sys.executable).with_name(name), folder / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([program, *arguments], env=variables, stdout=file, stderr=file, check=False)  # noqa: S603
    if done.returncode:
        raise StudyError(f"{name} failed with exit code {done.returncode}; {log} says why")

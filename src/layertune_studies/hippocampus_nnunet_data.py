"""Two data sets for nnU-Net out of the Decathlon's hippocampus cases: to pre-train on, and to fine-tune and test on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from layertune_studies.errors import DataError

__all__ = ["LABELS", "PLANS", "SOURCE", "TARGET", "prepare", "settings", "write_datasets"]

TASK = "Task04_Hippocampus"
SOURCE = "Dataset501_HippocampusInverted"
TARGET = "Dataset502_HippocampusFew"
PLANS = "nnUNetPlansSmall"
PATCH = (32, 40, 32)  # nnU-Net plans 40 x 56 x 40, and a batch of 9
BATCH = 2
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}


def settings(out: Path, results: str = "results") -> dict[str, str]:
    """nnU-Net's environment variables: folders under ``out``, and no compiler."""
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": results}
    return {"nnUNet_compile": "f", **{key: str(out / name) for key, name in folders.items()}}


def command(name: str, *arguments: str, out: Path) -> None:
    """Run one of nnU-Net's commands in one process, with its output at the end of ``out/log.txt``.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    # Planning fails with 0 processes for augmentation.
    variables = {**os.environ, **settings(out), "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    program = str(Path(sys.executable).with_name(name))
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        subprocess.run([program, *arguments], env=variables, stdout=log, stderr=log, check=True)  # noqa: S603 - nnU-Net's


def prepare(data: Path, out: Path, *, source: int, shots: int, test: int, narrower: int, seed: int) -> None:
    """Write both data sets, plan on the target's cases as nnU-Net's guide to fine-tuning has it, and preprocess both.

    Args:
        data: folder that holds ``Task04_Hippocampus``.
        out: where nnU-Net's folders are made.
        source: cases to pre-train on, with inverted contrast.
        shots: cases to fine-tune on.
        test: cases that no training sees.
        narrower: what nnU-Net's own numbers of features are divided by.
        seed: which cases are what.

    Raises:
        DataError: the cases are not there, or too few.
        subprocess.CalledProcessError: a command of nnU-Net failed; ``out/log.txt`` says why.
    """
    write_datasets(data / TASK, out / "raw", source=source, shots=shots, test=test, seed=seed)
    command("nnUNetv2_extract_fingerprint", "-d", SOURCE[7:10], TARGET[7:10], "-np", "1", out=out)
    command("nnUNetv2_plan_experiment", "-d", TARGET[7:10], out=out)
    folder = out / "preprocessed" / TARGET
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    (folder / f"{PLANS}.json").write_text(json.dumps(_smaller(plans, narrower), indent=4), encoding="utf-8")
    move = ("-s", TARGET[7:10], "-t", SOURCE[7:10], "-sp", PLANS, "-tp", PLANS)
    command("nnUNetv2_move_plans_between_datasets", *move, out=out)
    # Planning the source as well would leave it there.
    shutil.copy(out / "raw" / SOURCE / "dataset.json", out / "preprocessed" / SOURCE)
    preprocess = ("-plans_name", PLANS, "-c", "3d_fullres", "-np", "1")
    command("nnUNetv2_preprocess", "-d", SOURCE[7:10], TARGET[7:10], *preprocess, out=out)


def write_datasets(task: Path, raw: Path, *, source: int, shots: int, test: int, seed: int) -> None:
    """Lay the cases out as nnU-Net wants them; labels of the test cases go into ``labelsTs``."""
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (task / "imagesTr").glob("[!.]*.nii.gz"))
    if len(cases) < source + shots + test:
        raise DataError(f"{task} holds {len(cases)} cases, and {source + shots + test} are needed")
    order = [cases[index] for index in np.random.default_rng(seed).permutation(len(cases))]
    for case in order[:source]:
        _write_case(task, raw / SOURCE, case, part="Tr", inverted=True)
    for number, case in enumerate(order[source : source + shots + test]):
        _write_case(task, raw / TARGET, case, part="Tr" if number < shots else "Ts", inverted=False)
    for name, count in ((SOURCE, source), (TARGET, shots)):
        description = {
            "channel_names": {"0": "MRI"},
            "labels": LABELS,
            "numTraining": count,
            "file_ending": ".nii.gz",
        }
        (raw / name / "dataset.json").write_text(json.dumps(description, indent=4), encoding="utf-8")


def _write_case(task: Path, dataset: Path, case: str, *, part: str, inverted: bool) -> None:
    image = nib.nifti1.load(task / "imagesTr" / f"{case}.nii.gz")
    values = np.asarray(image.dataobj, dtype=np.float32)
    values = values.max() + values.min() - values if inverted else values
    label = nib.nifti1.load(task / "labelsTr" / f"{case}.nii.gz")
    written = {f"images{part}": (values, f"{case}_0000"), f"labels{part}": (np.asarray(label.dataobj, np.uint8), case)}
    for folder, (array, name) in written.items():
        (dataset / folder).mkdir(parents=True, exist_ok=True)
        nib.nifti1.save(nib.nifti1.Nifti1Image(array, image.affine), dataset / folder / f"{name}.nii.gz")


def _smaller(plans: Mapping[str, Any], narrower: int) -> dict[str, Any]:
    """The plan with fewer features, smaller patches and batches, and preprocessed data of its own."""
    setting = dict(plans["configurations"]["3d_fullres"])
    network = json.loads(json.dumps(setting["architecture"]))
    arguments = network["arch_kwargs"]
    arguments["features_per_stage"] = [features // narrower for features in arguments["features_per_stage"]]
    setting |= {"architecture": network, "batch_size": BATCH, "patch_size": list(PATCH)}
    setting["data_identifier"] = f"{PLANS}_3d_fullres"
    return {**plans, "plans_name": PLANS, "configurations": {"3d_fullres": setting}}

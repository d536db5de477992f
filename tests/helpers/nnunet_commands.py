"""nnU-Net's own commands, each in a process of its own, on a small data set in the Decathlon's format."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

import layertune_nnunet
from nnunet_runs import volume

DATASET = "Dataset004_Balls"
CASES = [f"ball_{number:03}" for number in range(6)]
TRAINERS = [Path(layertune_nnunet.__file__).parent / "trainer_folder", Path(__file__).parent / "nnunet_trainers"]
WITHOUT_LAYERTUNE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("layertune", "layertune_nnunet"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
"""


class Workplace(NamedTuple):
    """Hold a folder with nnU-Net's three folders, and run commands on it."""

    folder: Path

    def run(self, command: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's scripts, whether it succeeds or not.

        Args:
            command: Name of the script.
            *arguments: Arguments of its command line.
            **more: Environment variables to set.
        """
        program = [str(Path(sys.executable).with_name(command)), *map(str, arguments)]
        environment = {**os.environ, **self.variables(), **more}
        return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)

    def succeed(self, command: str, *arguments: object, **more: str) -> str:
        """Run a command that must succeed, and return its standard output."""
        done = self.run(command, *arguments, **more)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def variables(self) -> dict[str, str]:
        paths = {f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")}
        return {
            **paths,
            "nnUNet_extTrainer": os.pathsep.join(map(str, TRAINERS)),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": "1",
        }

    def without_layertune(self) -> dict[str, str]:
        """Return environment variables with which layertune cannot be imported."""
        (self.folder / "blocked").mkdir(exist_ok=True)
        (self.folder / "blocked" / "sitecustomize.py").write_text(WITHOUT_LAYERTUNE)
        return {"PYTHONPATH": str(self.folder / "blocked"), "nnUNet_extTrainer": ""}

    def fold(self, trainer: str, configuration: str, fold: int | str) -> Path:
        return self.folder / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}" / f"fold_{fold}"


def write_raw(folder: Path) -> None:
    """Write images and labels of a few balls in nnU-Net's raw format."""
    raw = folder / "raw" / DATASET
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for number, case in enumerate(CASES):
        image, labels = volume(number, side=16)
        nibabel.Nifti1Image(image, np.eye(4)).to_filename(raw / "imagesTr" / f"{case}_0000.nii.gz")
        nibabel.Nifti1Image(labels.astype(np.uint8), np.eye(4)).to_filename(raw / "labelsTr" / f"{case}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "ball": 1, "core": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))


def shrink_plans(folder: Path) -> None:
    """Reduce the features and the batch size that nnU-Net has planned, and validate on two cases."""
    file = folder / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            features = configuration["architecture"]["arch_kwargs"]["features_per_stage"]
            features[:] = [4, *[8] * (len(features) - 1)]
            configuration["batch_size"] = 2
    file.write_text(json.dumps(plans))
    splits = [{"train": CASES[:4], "val": CASES[4:]}]
    (folder / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))


def dice(prediction: Path, truth: Path, label: int) -> float:
    one, other = (np.asanyarray(nibabel.load(file).dataobj) == label for file in (prediction, truth))
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))

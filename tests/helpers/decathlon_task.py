"""A small task in the layout of the Decathlon: two half-ellipsoids in noise, in an orientation other than RAS."""

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

__all__ = ["AFFINE", "TASK", "make_task", "task_dir"]

TASK = "Task04_Hippocampus"
# Left and right are swapped, the origin is elsewhere, and a voxel is not 1 mm; a prediction has to return to this.
AFFINE = np.array([[-1.0, 0, 0, 12], [0, 1.2, 0, -7], [0, 0, 1.0, 3], [0, 0, 0, 1]])


def make_task(root: Path, *, cases: int = 5, size: tuple[int, int, int] = (18, 20, 16), task: str = TASK) -> Path:
    """Write the folder of a task below a root, and return it."""
    folder = root / task
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij"))
    entries = []
    for number in range(cases):
        radii = rng.uniform(0.45, 0.7, (3, 1, 1, 1))
        inside = ((grid / radii) ** 2).sum(0) < 1
        label = (inside * np.where(grid[1] < 0, 1, 2)).astype(np.uint8)
        image = (label * 100.0 + rng.normal(0, 20, size)).astype(np.float32)
        entry = {"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"}
        for array, name in ((image, entry["image"]), (label, entry["label"])):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), folder / name)
        entries.append(entry)
    content: dict[str, Any] = {
        "name": "Made by a test",
        "description": "two half-ellipsoids in noise",
        "reference": "none",
        "licence": "CC0",
        "tensorImageSize": "3D",
        "numTraining": cases,
        "numTest": 0,
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def task_dir(root: Path) -> Path:
    """Return the folder that holds the real task, or else a folder with a small task, made below a root."""
    real = os.environ.get("LAYERTUNE_DATA")
    if real and (Path(real) / TASK / "dataset.json").is_file():
        return Path(real)
    make_task(root, cases=8)
    return root

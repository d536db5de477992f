"""Small studies on made-up data, for the tests of the studies."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml
from PIL import Image

METHODS: list[dict[str, Any]] = [
    {"kind": "flat"},
    {"kind": "last", "lr": [0.1]},
    {"kind": "layer-wise", "first": [9, 5], "lr": "tuned"},
    {"kind": "bi-directional", "settings": [[1, 1], [3, 6]], "lr": "tuned"},
    {"kind": "layer-decay", "rates": [0.5], "lr": "tuned"},
    {"kind": "last-then-all", "lr": [0.1]},
    {"kind": "autolr", "lr": [0.01], "max_trials": 2},
    {"kind": "prodigy"},
    {"kind": "norm-only", "lr": [0.1]},
    {"kind": "alchemy", "lr": [0.01], "quantile": 0.2},
    {"kind": "metalr", "rule": "joint", "lr": [0.01]},
    {"kind": "metalr", "mode": "every", "every": 2, "rule": "proportional", "lr": [0.01]},
    {"kind": "metalr", "mode": "streaming", "rule": "additive", "hyper_lr": 1e-4, "lr": [0.01]},
    {"kind": "scratch", "lr": [0.01]},
    {"kind": "lp_ft", "lr": [0.01]},
    {"kind": "gradual_unfreezing", "lr": [0.01]},
    {"kind": "auto_rgn", "lr": [0.01]},
    {"kind": "l2_sp", "alphas": [0.1, 0.01], "lr": [0.01]},
    {"kind": "prodigy_split"},
    {"kind": "ldog"},
    {"kind": "schedulefree_adamw", "lr": [0.01]},
    {"kind": "dadapt_adam"},
]


def write_images(root: Path, *, counts: tuple[int, int, int] = (12, 6, 6), classes: int = 3) -> None:
    """A file like PneumoniaMNIST's, of three classes: images that are the brighter, the higher their class."""
    rng = np.random.RandomState(0)
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        labels = np.arange(count, dtype=np.uint8)[:, None] % classes
        images = rng.randint(0, 100, (count, 28, 28)) + 50 * labels[:, :, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "pneumoniamnist.npz", **arrays)


def write_pictures(root: Path, folders: list[str], *, count: int = 4, size: int = 20) -> None:
    """PNG files in folders of classes, none of which is like another."""
    rng = np.random.RandomState(0)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(rng.randint(0, 256, (size, size)).astype(np.uint8))
            picture.save(root / folder / f"{number}.png")


def study_of(**changes: Any) -> dict[str, Any]:
    """A study of seconds; changes replace whole sections."""
    study: dict[str, Any] = {
        "name": "small",
        "data": {"set": "pneumoniamnist", "classes": 3, "size": [16, 16], "labelled": [8]},
        "network": {"name": "small_networks:SmallResNet"},
        "budget": {"unit": "passes", "amount": 4, "batch": 4},
        "lrs": [0.01, 0.1],
        "methods": [{"kind": "flat"}],
        "seeds": 1,
        "metrics": ["accuracy", "auc"],
    }
    return study | changes


def nnunet_study(**changes: Any) -> dict[str, Any]:
    """A study by nnU-Net on the cases of ``volumes``; changes replace whole sections."""
    study: dict[str, Any] = {
        "loop": "nnunet",
        "data": {
            "set": "volumes",
            "classes": 2,
            "patch": [8, 8, 8],
            "labelled": [2],
            "split": {"counts": [4, 1, 2]},
        },
        "network": {"name": "nnunet", "arguments": {"narrower": 2}},
        "pretraining": {"task": "inverted", "cases": 2, "steps": 1, "lr": 1e-3},
        "optimizer": {"name": "adamw"},
        "budget": {"unit": "steps", "amount": 2, "batch": 2, "epoch": 1},
        "metrics": ["dice", "dice_1"],
    }
    return study_of(**(study | changes))


def write_study(path: Path, **changes: Any) -> Path:
    """The file of such a study."""
    path.write_text(yaml.safe_dump(study_of(**changes)), encoding="utf-8")
    return path


def write_volume(root: Path, name: str, image: np.ndarray, label: np.ndarray) -> None:
    """One case as NIfTI files."""
    for folder, array in (("imagesTr", image), ("labelsTr", label)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), root / folder / f"{name}.nii.gz")


def volumes(root: Path, count: int = 6, side: int = 8, **change: Any) -> Path:
    """A folder of small volumes with a bright box, the first of which may be another."""
    rng = np.random.RandomState(0)
    for number in range(count):
        label = np.zeros((side,) * 3)
        label[2:5, 2:5, 2 : 4 + number % 2] = 1
        write_volume(root / "volumes", f"case{number}", label + 0.1 * rng.randn(*label.shape), label)
    if change:
        write_volume(root / "volumes", "case0", **change)
    return root

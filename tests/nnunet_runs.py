"""A small data set as nnU-Net preprocesses it, written directly, and runs of trainers on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

DATASET = "Dataset001_Balls"
CASES = 8
FOLDS = [{"train": [f"case_{i}" for i in range(6)], "val": ["case_6", "case_7"]}]
LABELS = {"background": 0, "ball": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


def volume(case: int, side: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """An image (1 x D x H x W) of a bright ball with a brighter core, and its labels."""
    rng = np.random.default_rng(case)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    distance = np.sqrt(((grid - rng.uniform(8, 12, (3, 1, 1, 1))) ** 2).sum(0))
    labels = (distance < 6).astype(np.int16) + (distance < 3)
    image = labels + rng.normal(0, 0.5, labels.shape)
    return image[None].astype(np.float32), labels[None].astype(np.int16)


def architecture(dim: int) -> dict[str, Any]:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": [[3] * dim] * 3,
            "strides": [[1] * dim, [2] * dim, [2] * dim],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(dim: int, **more: Any) -> dict[str, Any]:
    return {
        "data_identifier": "data",
        "batch_size": 2,
        "patch_size": [16] * dim,
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": architecture(dim),
        **more,
    }


def plans() -> dict[str, Any]:
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": configuration(2),
            "3d_fullres": configuration(3),
            "3d_lowres": configuration(3, next_stage="3d_cascade_fullres"),
            "3d_cascade_fullres": configuration(3, previous_stage="3d_lowres"),
        },
        "continue_training": False,
    }


def dataset_json(labels: dict[str, Any] = LABELS) -> dict[str, Any]:
    regions = {"regions_class_order": [1, 2]} if any(isinstance(label, list) for label in labels.values()) else {}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": CASES, **regions}


def write_preprocessed(folder: Path) -> None:
    """What ``nnUNetv2_preprocess`` leaves, as far as training reads it."""
    data = folder / DATASET / "data"
    data.mkdir(parents=True)
    for case in range(CASES):
        image, labels = volume(case)
        locations = {label: np.argwhere(labels == label) for label in (1, 2)}
        every = np.argwhere(labels >= 0)
        locations |= {(1, 2): np.argwhere(labels > 0), (-1, 0, 1, 2): every, (-1, 1, 2): every}
        nnUNetDatasetBlosc2.save_case(image, labels, {"class_locations": locations}, str(data / f"case_{case}"))
    (folder / DATASET / "splits_final.json").write_text(json.dumps(FOLDS))
    (folder / DATASET / "dataset_fingerprint.json").write_text("{}")


class Tiny:
    """Epochs of three steps; random numbers that depend on the epoch alone, so that nnU-Net itself repeats its runs."""

    def __init__(
        self,
        plans: Any,
        configuration: Any,
        fold: Any,
        dataset_json: Any,
        device: Any = torch.device("cpu"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = 3
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1

    def on_epoch_start(self) -> None:
        seed(self.current_epoch)
        super().on_epoch_start()


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002 - what nnU-Net draws from


def made(trainer: type, setting: str = "3d_fullres", fold: int | str = 0, **values: Any) -> Any:
    """A trainer of small epochs: of a class of nnU-Net or ours, with values for its class attributes."""
    labels = values.pop("labels", LABELS)
    plan = values.pop("plans", None) or plans()
    tiny = type(trainer.__name__, (Tiny, trainer), {"epochs": 2, **values})
    seed(100)
    made = tiny(plan, setting, fold, dataset_json(labels), torch.device("cpu"))
    made.num_epochs = values.get("epochs", 2)
    return made


def environment(folder: Path) -> dict[str, str]:
    return {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
    }

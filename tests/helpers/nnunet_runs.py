"""A small data set in nnU-Net's preprocessed format, and trainers with epochs of a few steps."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from os import environ
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor

DATASET = "Dataset001_Balls"
CASES = [f"case_{number}" for number in range(8)]
TRAINING, VALIDATION = CASES[:6], CASES[6:]
LABELS: dict[str, Any] = {"background": 0, "ball": 1, "core": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2}
WITH_IGNORED: dict[str, Any] = {"background": 0, "ball": 1, "ignore": 2}
STEPS = 3
LOGS = count()


def volume(number: int, side: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (side x side x side) of a bright ball with a brighter core, and its labels."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    distance = np.sqrt(((grid - rng.uniform(0.4 * side, 0.6 * side, (3, 1, 1, 1))) ** 2).sum(0))
    labels = (distance < 0.3 * side).astype(np.int16) + (distance < 0.15 * side)
    return (labels + rng.normal(0, 0.5, labels.shape)).astype(np.float32), labels.astype(np.int16)


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
        "continue_training": False,
        "configurations": {
            "2d": configuration(2),
            "3d_fullres": configuration(3),
            "3d_lowres": configuration(3, next_stage="3d_cascade_fullres"),
            "3d_cascade_fullres": configuration(3, previous_stage="3d_lowres"),
        },
        "label_manager": "LabelManager",
    }


def dataset_json(labels: dict[str, Any]) -> dict[str, Any]:
    regions = {"regions_class_order": [1, 2]} if any(isinstance(label, list) for label in labels.values()) else {}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", **regions}


def write_preprocessed(folder: Path) -> None:
    """Write the files of ``nnUNetv2_preprocess`` that training reads into a folder."""
    data = folder / DATASET / "data"
    data.mkdir(parents=True)
    for number, case in enumerate(CASES):
        image, labels = (part[None] for part in volume(number))
        locations: dict[Any, Any] = {label: np.argwhere(labels == label) for label in (1, 2)}
        locations |= {(1, 2): np.argwhere(labels > 0), (-1, 0, 1): np.argwhere(labels < 2)}
        shape = image.shape  # in one chunk
        name, properties = str(data / case), {"class_locations": locations}
        nnUNetDatasetBlosc2.save_case(image, labels, properties, name, shape, shape, shape, shape)
    (folder / DATASET / "splits_final.json").write_text(json.dumps([{"train": TRAINING, "val": VALIDATION}]))
    (folder / DATASET / "dataset_fingerprint.json").write_text("{}")


def settings(folder: Path) -> dict[str, str]:
    """Return nnU-Net's environment variables for trainings in a folder, without worker processes."""
    return {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
    }


@contextmanager
def preprocessed(folder: Path) -> Iterator[Path]:
    """Write the data set into a folder, and set nnU-Net's variables to it inside the block."""
    with patch.dict(environ, settings(folder)):
        if not (folder / "preprocessed").exists():
            write_preprocessed(folder / "preprocessed")
        yield folder


class Killed(BaseException):
    """Raised where a real training would be killed."""


class Tiny:
    """Train with epochs of three steps and a checkpoint after each.

    nnU-Net does not save its random state, so its own trainings go on differently after ``--c``. Here each epoch starts
    from a random state of its own, so that trainings repeat.

    Attributes:
        stop_at: The epoch and step before which the training is killed.
        save_every: Number of epochs between checkpoints.
        draws: Whether the figures are drawn, which takes longer than the training.
    """

    stop_at: tuple[int, int] | None = None
    save_every = 1
    draws = False
    steps_done = 0

    # nnU-Net passes the arguments that this signature names.
    def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any = None) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = STEPS
        self.num_val_iterations_per_epoch = 1
        self.save_every = type(self).save_every
        # nnU-Net names logs by the second, so two trainers that are made in one second would share a log.
        self.log_file = f"{self.log_file}_{next(LOGS)}"
        self.logger.plot_progress_png = lambda _: None
        if not self.draws:
            self.plot_learned_rates = self.report_learned_rates = self.plot_gammas = lambda: None

    def on_epoch_start(self) -> None:
        self.steps_done = 0
        seed(self.current_epoch)
        super().on_epoch_start()

    def train_step(self, batch: Any) -> Any:
        if (self.current_epoch, self.steps_done) == self.stop_at:
            raise Killed
        self.steps_done += 1
        return super().train_step(batch)

    def plot_network_architecture(self) -> None:
        pass


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002 - nnU-Net draws from it


def make(
    trainer: type, setting: str = "3d_fullres", *, fold: int | str = 0, labels: Any = LABELS, **values: Any
) -> Any:
    """Make a trainer of one of nnU-Net's or layertune's classes, with tiny epochs.

    Args:
        trainer: The class.
        setting: A configuration of ``plans()``.
        fold: The fold, or ``"all"``.
        labels: The labels of the data set.
        **values: Class attributes to set. ``plans`` and ``epochs`` are used directly.
    """
    seed(100)
    tiny = type(trainer.__name__, (Tiny, trainer), values)
    made = tiny(values.get("plans") or plans(), setting, fold, dataset_json(labels), torch.device("cpu"))
    made.num_epochs = values.get("epochs", 2)
    return made


def train(trainer: type, setting: str = "3d_fullres", **values: Any) -> Any:
    """Train for two epochs, or for as many as ``epochs`` says, and return the trainer."""
    made = make(trainer, setting, **values)
    made.run_training()
    return made


def kill(trainer: type, stop_at: tuple[int, int], **values: Any) -> None:
    """Train until the given epoch and step, and stop as if the process were killed."""
    try:
        train(trainer, stop_at=stop_at, **values)
    except Killed:
        return
    raise AssertionError(f"the training ended before {stop_at}")


def resume(trainer: type, **values: Any) -> Any:
    """Go on from the last checkpoint as ``nnUNetv2_train --c`` does, and return the trainer."""
    from nnunetv2.run.run_training import maybe_load_checkpoint

    made = make(trainer, **values)
    maybe_load_checkpoint(made, continue_training=True, validation_only=False)
    made.run_training()
    return made


def weights(trainer: Any) -> list[Tensor]:
    return list(trainer.network.state_dict().values())


def same(one: Any, other: Any) -> bool:
    """Return whether two trainers have the same weights, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))

"""The cost of a training step in nnU-Net with layertune's trainers, as ratios to nnU-Net's own trainer."""

import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import layertune_nnunet
from layertune.hosts.plugin import import_host
from layertune.restoring import seed_generators
from layertune_nnunet import PLUGIN
from layertune_studies.bench.paired import ratios_to, seconds_of, summary, time_in_turns

__all__ = ["NNUNET_LIMITS", "bench_nnunet", "preprocessed", "small_plan"]

DATASET = "Dataset001_Noise"
CASES = 4
LAPS = 10  # of a repeat
WARM_UP = 2  # the first steps allocate buffers and choose algorithms
PATCH = (40, 56, 40)  # nnU-Net's own for the Decathlon's hippocampus cases
FEATURES = (8, 16, 32)  # a quarter of its own, so that a step takes about a second on one core
HYPER_LR = "1em6"  # the network learns noise here: rates that stay near their start keep every step alike
CONTENDERS = {
    "streaming": f"nnUNetTrainerMetaLRStreaming_hlr{HYPER_LR}",
    "stock": "nnUNetTrainer",
    "exact": f"nnUNetTrainerMetaLR_hlr{HYPER_LR}",
}
NNUNET_LIMITS = {"streaming_ratio": 1.08, "exact_ratio": 2.15}
"""Upper bounds on a quiet machine."""


def bench_nnunet(*, repeats: int = 4, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Time ``train_step`` of layertune's trainers beside that of ``nnUNetTrainer``, in one process and in turns.

    The trainers work on generated, preprocessed cases in a temporary folder, with everything that nnU-Net does around a
    step: deep supervision, gradient clipping, autocast and loss scaling on a GPU, but without ``torch.compile``.
    Training batches are augmented beforehand, and all trainers get the same. The meta batch is loaded within the step,
    as in a training.

    Args:
        repeats: Number of repeats with ten laps each. In a lap each trainer takes one step.
        device: ``"cpu"`` or ``"cuda"``.
        seed: Seed of the weights, cases and batches.

    Returns:
        ``streaming_ratio`` and ``exact_ratio``, medians; ``stock_ms``, the median stock step; ``repeats``; and
        ``spread``, the quartiles of each ratio.

    Raises:
        MissingPackageError: nnU-Net is not installed.

    Example:
        ``layertune bench nnunet`` runs it.

        >>> NNUNET_LIMITS
        {'streaming_ratio': 1.08, 'exact_ratio': 2.15}
    """
    import_host(PLUGIN)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, _settings(folder)):
        preprocessed(Path(folder, "nnUNet_preprocessed"), seed)
        trainers = {name: _trainer(trainer, device, seed) for name, trainer in CONTENDERS.items()}
        batches = [next(trainers["stock"].dataloader_train) for _ in range(3)]
        # In a lap all trainers get the same batch.
        turns = {name: partial(_seconds, trainer, itertools.cycle(batches)) for name, trainer in trainers.items()}
        time_in_turns(turns, WARM_UP)
        times = time_in_turns(turns, LAPS * repeats)
        for trainer in trainers.values():
            trainer.on_train_end()
    return summary(ratios_to(times, "stock"), times["stock"], repeats=repeats, name="stock")


def preprocessed(folder: Path, seed: int) -> None:
    """Write cases of noise in the form in which ``nnUNetv2_preprocess`` leaves them, as far as training reads it."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    random = np.random.default_rng(seed)
    data = folder / DATASET / "data"
    data.mkdir(parents=True)
    for case in range(CASES):
        labels = random.integers(0, 3, (1, *PATCH), dtype=np.int16)
        locations = {label: np.argwhere(labels == label)[:1000] for label in (1, 2)}
        image = random.normal(size=labels.shape).astype(np.float32)
        shape = labels.shape  # in one chunk
        properties, name = {"class_locations": locations}, str(data / f"case_{case}")
        nnUNetDatasetBlosc2.save_case(image, labels, properties, name, shape, shape, shape, shape)
    (folder / DATASET / "dataset_fingerprint.json").write_text("{}", encoding="utf-8")


def small_plan() -> dict[str, Any]:
    """Return a plan for 3D patches as ``nnUNetv2_plan_experiment`` makes it, but with few features."""
    stages = len(FEATURES)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": FEATURES,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    setting = {
        "data_identifier": "data",
        "batch_size": 2,
        "patch_size": list(PATCH),
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": architecture,
    }
    return {"dataset_name": DATASET, "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": setting}}


def _settings(folder: str) -> dict[str, str]:
    """Return nnU-Net's environment variables for work in a folder, in this process and without a compiler."""
    folders = {name: str(Path(folder, name)) for name in ("nnUNet_preprocessed", "nnUNet_results")}
    return {**folders, "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}


def _trainer(name: str, device: str, seed: int) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer_class = nnUNetTrainer if name == "nnUNetTrainer" else getattr(layertune_nnunet, name)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    seed_generators(seed)
    plans = json.loads(json.dumps(small_plan())) | {"continue_training": False}
    trainer = trainer_class(plans, "3d_fullres", "all", description, torch.device(device))
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def _seconds(trainer: Any, batches: Iterator[Mapping[str, Any]]) -> float:
    """Return the seconds that a trainer's step with the next batch takes."""
    batch = next(batches)

    def step() -> None:
        trainer.train_step(batch)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()

    return seconds_of(step)

"""nnU-Net as the loop of a study: its trainers, its predictions and its Dice, in this process and seeded.

``nnUNetv2_train`` has no options for seeds, threads and the length of an epoch, and ``nnUNetv2_predict`` starts
processes that import everything again. The functions that are called here are those that the commands call.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam1en3

from layertune import LayerMap, map_layers
from layertune.layers.layer import Depth
from layertune.restoring import seed_generators
from layertune_nnunet import FixedLayersMixin, MetaLRMixin, MetaLRStreamingMixin
from layertune_nnunet.tools.planned_network import planned_network
from layertune_studies.config.methods import Flat, MetaLRMethod, Method, Scratch, Untuned
from layertune_studies.config.study import Study
from layertune_studies.data.nnunet import CONFIGURATION, PLANS, SOURCE, TARGET, environment
from layertune_studies.training.budget import passes_of_step, steps_of
from layertune_studies.training.loop import TrainingResult
from layertune_studies.training.metrics import Scores
from layertune_studies.training.network import device
from layertune_studies.training.settings import Setting, policy_of

__all__ = ["planned_layers", "pretrain", "scores_of", "train_and_score", "trainer_class"]

TRAINERS = {"sgd": nnUNetTrainer, "adamw": nnUNetTrainerAdam1en3}
FINAL = "checkpoint_final.pth"
EPOCH = 250  # steps of nnU-Net's own epochs
PRETRAINING = "pretraining"  # the folder of the pre-trained network
PARTS = {"validation": "Va", "test": "Ts"}


def planned_layers(study: Study, folder: Path, depth: Depth) -> LayerMap:
    """Return the layers of the network that nnU-Net planned.

    Args:
        study: The study, whose loop is ``"nnunet"``.
        folder: The folder of nnU-Net's data, after ``prepare``.
        depth: How depths are read.
    """
    planned = folder / "preprocessed" / TARGET
    planned_net = planned_network(planned / f"{PLANS}.json", planned / "dataset.json", CONFIGURATION)
    return map_layers(planned_net.network, planned_net.example, granularity=study.network.granularity, depth=depth)


def pretrain(study: Study, folder: Path, tell: Callable[[int], object]) -> None:
    """Pre-train with nnU-Net's own trainer, unless that is done.

    Args:
        study: The study, whose loop is ``"nnunet"``.
        folder: The folder of nnU-Net's data, after ``prepare``.
        tell: Progress callback, called with the number of steps done.
    """
    config = study.pretraining
    if config.task is None or _checkpoint(study, folder).is_file():
        return
    torch.set_num_threads(study.threads)
    with _nnunet(folder, PRETRAINING):
        trainer = _trainer(folder, SOURCE, TRAINERS[study.optimizer.name], seed=config.seed)
        _set_budget(trainer, study, config.lr, config.steps)
        _fit(trainer, TrainingResult(), tell)


def train_and_score(
    study: Study,
    method: Method,
    setting: Setting,
    *,
    lr: float,
    seed: int,
    folder: Path,
    name: str,
    tell: Callable[[int], object],
) -> tuple[TrainingResult, dict[str, Any]]:
    """Train by a method and evaluate the result.

    Args:
        study: The study, whose loop is ``"nnunet"``.
        method: The method, as the study's file describes it.
        setting: The setting of the method, which says which layers are trained.
        lr: The learning rate at the first step, > 0.
        seed: Seed of the new segmentation layers and of the batches.
        folder: The folder of nnU-Net's data, after ``prepare`` and ``pretrain``.
        name: Name of the trial's folders.
        tell: Progress callback, called with the number of steps done.

    Returns:
        The outcome of the training; and ``diverged``, ``validation`` and ``test``: the scores, which are 0 of a network
        that diverged, and None for the test cases if the study does not look at them.
    """
    torch.set_num_threads(study.threads)
    trained = TrainingResult()
    with _nnunet(folder, f"trials/{name}"):
        trainer = _trainer(folder, TARGET, trainer_class(study, method, setting), seed=seed)
        _set_budget(trainer, study, lr, max(1, steps_of(study, method)))
        pretrained = study.pretraining.task is not None and not isinstance(method, Scratch)
        start = str(_checkpoint(study, folder)) if pretrained else None
        trainer.initialize()
        if isinstance(method, Untuned):
            if start is not None:
                trainer.load_checkpoint(start)
        else:
            maybe_load_checkpoint(trainer, False, False, start)
            _fit(trainer, trained, tell)
            trained.passes = round(trained.steps * passes_of_step(method), 6)
            if isinstance(method, MetaLRMethod) and (profile := trainer.profile) is not None:
                trained.set_profile(dict(zip(profile.layers, profile.lrs[-1], strict=True)), profile)
        return trained, _scores(study, trainer, folder, name)


def trainer_class(study: Study, method: Method, setting: Setting) -> type:
    """Return nnU-Net's trainer, behind layertune's mixin for the method."""
    base: type = TRAINERS[study.optimizer.name]
    attributes: dict[str, Any] = {"granularity": study.network.granularity}
    attributes["depth"] = getattr(method, "depth", None) or study.network.depth
    if isinstance(method, MetaLRMethod):
        mixin: type = MetaLRStreamingMixin if method.mode == "streaming" else MetaLRMixin
        attributes |= method.learner_options()
    elif isinstance(method, Flat | Scratch | Untuned):
        return base
    else:
        mixin = FixedLayersMixin
        attributes["policy"] = lambda _: policy_of(setting)
    return type(f"{base.__name__}{mixin.__name__.removesuffix('Mixin')}", (mixin, base), attributes)


def _trainer(folder: Path, dataset: str, trainer_class: type, *, seed: int) -> Any:
    """Make a trainer for all cases of a data set."""
    seed_generators(seed)
    planned = folder / "preprocessed" / dataset
    plans, description = (_read(planned / f"{name}.json") for name in (PLANS, "dataset"))
    return trainer_class(plans | {"continue_training": False}, CONFIGURATION, "all", description, device())


def _set_budget(trainer: Any, study: Study, lr: float, steps: int) -> None:
    """Set rate and steps, before the optimizer and its schedule are made."""
    epochs = max(1, steps // (study.budget.epoch or EPOCH))
    trainer.initial_lr = lr
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, steps // epochs
    trainer.num_val_iterations_per_epoch = 1


def _fit(trainer: Any, trained: TrainingResult, tell: Callable[[int], object]) -> None:
    """Train as ``nnUNetv2_train`` does."""
    train_step = trainer.train_step

    def recorded_step(batch: Any) -> Any:
        outcome = train_step(batch)
        trained.steps += 1
        trained.losses.append(float(outcome["loss"]))
        tell(trained.steps)
        return outcome

    trainer.train_step = recorded_step
    start = time.process_time()
    trainer.run_training()
    trained.cpu_seconds = time.process_time() - start


def _scores(study: Study, trainer: Any, folder: Path, name: str) -> dict[str, Any]:
    diverged = not all(bool(torch.isfinite(value).all()) for value in trainer.network.state_dict().values())
    by_part: dict[str, Any] = {"diverged": diverged, "test": None}
    classes = list(trainer.label_manager.foreground_labels)
    for part in ("validation", "test") if study.report == "test" else ("validation",):
        images, labels = (folder / "raw" / TARGET / f"{kind}{PARTS[part]}" for kind in ("images", "labels"))
        predictions = folder / "predictions" / name / part
        _predict(trainer, images, predictions)
        scores = scores_of(predictions, labels, classes)
        by_part[part] = dict.fromkeys(scores, 0.0) if diverged else scores
    return by_part


def _predict(trainer: Any, images: Path, predictions: Path) -> None:
    """Predict as ``nnUNetv2_predict --disable_tta`` does."""
    predictor = nnUNetPredictor(
        use_mirroring=False, device=trainer.device, perform_everything_on_device=False, allow_tqdm=False
    )
    trainer.set_deep_supervision_enabled(False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    predictions.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(images), str(predictions))


def scores_of(predictions: Path, labels: Path, classes: Sequence[int]) -> Scores:
    """Compare predicted label maps with the true ones, as ``nnUNetv2_evaluate_folder`` does.

    Args:
        predictions: Folder of the predicted label maps.
        labels: Folder of the true label maps, with files of the same names.
        classes: Numbers of the foreground classes.

    Returns:
        ``dice``, ``ppv`` and ``sensitivity``, means over cases and classes; and ``dice_N``, the mean over the cases,
        for each class N. A case without a class does not count for that class.
    """
    files = sorted(labels.glob("*.nii.gz"))
    cases = [compute_metrics(str(file), str(predictions / file.name), SimpleITKIO(), classes) for file in files]

    def mean(number: int, value_of: Callable[[dict[str, float]], float]) -> float:
        values = np.array([value_of(case["metrics"][number]) for case in cases])
        return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0

    dice = {number: mean(number, lambda one: one["Dice"]) for number in classes}
    ppv = [mean(number, lambda one: _ratio(one["TP"], one["n_pred"])) for number in classes]
    sensitivity = [mean(number, lambda one: _ratio(one["TP"], one["n_ref"])) for number in classes]
    means = {"dice": list(dice.values()), "ppv": ppv, "sensitivity": sensitivity}
    by_class = {f"dice_{number}": value for number, value in dice.items()}
    return {**{name: float(np.mean(values)) for name, values in means.items()}, **by_class}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


@contextmanager
def _nnunet(folder: Path, results: str) -> Iterator[None]:
    """Let nnU-Net work in a folder, without further processes, and write what it prints to ``log.txt``."""
    variables = environment(folder, results) | {"nnUNet_n_proc_DA": "0"}
    log = (folder / "log.txt").open("a", encoding="utf-8")
    with patch.dict(os.environ, variables), log, redirect_stdout(log), _default_sigterm():
        yield


@contextmanager
def _default_sigterm() -> Iterator[None]:
    """Give SIGTERM its default action, and give it back its handler at the end.

    nnU-Net lists its files with a pool of processes, which it ends by SIGTERM. Python drops signals that reach a forked
    process in its first moments if they have a handler in Python, as Ray leaves one; the pool then waits without end.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _checkpoint(study: Study, folder: Path) -> Path:
    """Return the file of the pre-trained network."""
    trainer = TRAINERS[study.optimizer.name].__name__
    return folder / PRETRAINING / SOURCE / f"{trainer}__{PLANS}__{CONFIGURATION}" / "fold_all" / FINAL


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

"""One short training by nnU-Net's own functions, its predictions and their Dice: seeded, one thread, in this process.

``nnUNetv2_train`` has no options for seeds, threads and the length of an epoch, and ``nnUNetv2_predict`` starts
processes that import all anew; what is called here is what these commands call.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

__all__ = ["Training", "dice_of", "predict", "train"]

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, on all cases of a data set.

    Attributes:
        dataset: as ``Dataset501_Name``.
        trainer: as ``-tr`` takes it.
        plans: as ``-p`` takes it.
        pretrained: file for ``-pretrained_weights``, or none.
        epochs: how many.
        iterations: of an epoch; nnU-Net's own are 250.
        seed: of weights and batches.
    """

    dataset: str
    trainer: str
    plans: str
    pretrained: Path | None
    epochs: int
    iterations: int
    seed: int


def train(training: Training) -> float:
    """Train as ``nnUNetv2_train`` does; seconds of the processor that an epoch took."""
    random.seed(training.seed)
    np.random.seed(training.seed)  # noqa: NPY002 - what nnU-Net draws from
    torch.manual_seed(training.seed)
    trainer = get_trainer_from_args(training.dataset, "3d_fullres", "all", training.trainer, training.plans, device=CPU)
    trainer.num_epochs = training.epochs
    trainer.num_iterations_per_epoch = training.iterations
    trainer.num_val_iterations_per_epoch = 1
    maybe_load_checkpoint(trainer, False, False, None if training.pretrained is None else str(training.pretrained))
    start = time.process_time()
    trainer.run_training()
    return (time.process_time() - start) / training.epochs


def predict(model: Path, images: Path, found: Path) -> None:
    """Predict as ``nnUNetv2_predict -f all --disable_tta`` does, with the trainer that the checkpoint names."""
    predictor = nnUNetPredictor(use_mirroring=False, device=CPU, perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), use_folds=("all",))
    found.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(images), str(found))


def dice_of(found: Path, labels: Path, classes: dict[str, int]) -> dict[str, float]:
    """Mean Dice over the cases by class, and the mean of the classes, as ``nnUNetv2_evaluate_folder`` computes it."""
    files = sorted(labels.glob("*.nii.gz"))
    numbers = list(classes.values())
    cases = [compute_metrics(str(file), str(found / file.name), SimpleITKIO(), numbers)["metrics"] for file in files]
    dice = {name: float(np.nanmean([case[number]["Dice"] for case in cases])) for name, number in classes.items()}
    return {**dice, "mean": float(np.mean(list(dice.values())))}

"""One short training by nnU-Net's own functions, in an interpreter of its own: seeded, one thread, on the CPU.

    python -m layertune_studies.nnunet_training '{"trainer": "nnUNetTrainer", ...}'

``nnUNetv2_train`` has no options for seeds, threads and the length of an epoch; all else is as it does it.
"""

import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Training", "train"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained.

    Attributes:
        dataset: as ``Dataset501_Name``.
        trainer: as ``-tr`` takes it.
        plans: as ``-p`` takes it.
        pretrained: file for ``-pretrained_weights``, or none.
        epochs: how many.
        iterations: of an epoch; nnU-Net's own are 250.
        seed: of weights and batches.
        report: JSON file for what it took.
    """

    dataset: str
    trainer: str
    plans: str
    pretrained: str | None
    epochs: int
    iterations: int
    seed: int
    report: str

    def words(self) -> list[str]:
        """The command that runs it."""
        return [sys.executable, "-m", "layertune_studies.nnunet_training", json.dumps(asdict(self))]


def train(training: Training) -> None:
    """Train, and write what an epoch took: the median ``epoch_seconds``, and the mean ``cpu_seconds``."""
    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    torch.set_num_threads(1)
    random.seed(training.seed)
    np.random.seed(training.seed)  # noqa: NPY002 - what nnU-Net draws from
    torch.manual_seed(training.seed)
    trainer = get_trainer_from_args(
        training.dataset, "3d_fullres", "all", training.trainer, training.plans, device=torch.device("cpu")
    )
    trainer.num_epochs = training.epochs
    trainer.num_iterations_per_epoch = training.iterations
    trainer.num_val_iterations_per_epoch = 1
    maybe_load_checkpoint(trainer, False, False, training.pretrained)
    start = time.process_time()
    trainer.run_training()
    took = time.process_time() - start
    logged = trainer.logger.local_logger.my_fantastic_logging
    times = zip(logged["epoch_start_timestamps"], logged["epoch_end_timestamps"], strict=True)
    report = {
        "epoch_seconds": statistics.median(float(end - start) for start, end in times),
        "cpu_seconds": took / training.epochs,
    }
    Path(training.report).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    train(Training(**json.loads(sys.argv[1])))

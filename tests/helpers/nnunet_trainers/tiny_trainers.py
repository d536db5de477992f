"""A user's own trainers in a folder of ``nnUNet_extTrainer``: layertune's trainers with epochs of two steps.

``Tiny_nnUNetTrainerMetaLR_3epochs`` is ``nnUNetTrainerMetaLR_3epochs`` with such epochs. The process kills itself, as a
power cut would, before the step whose number from the start of the training is in ``TINY_KILL``.
"""

import os
import signal
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import layertune_nnunet

STEPS = 2


class TinyMixin:
    def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any = None) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = STEPS
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1
        self.steps = 0
        plot = self.logger.plot_progress_png
        # The figure takes longer than an epoch.
        self.logger.plot_progress_png = lambda folder: self.is_last() and plot(folder)

    def is_last(self) -> bool:
        return self.current_epoch == self.num_epochs - 1

    def train_step(self, batch: Any) -> Any:
        if os.environ.get("TINY_KILL") == str(self.current_epoch * STEPS + self.steps % STEPS):
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1
        return super().train_step(batch)


class Tiny_nnUNetTrainer(TinyMixin, nnUNetTrainer):  # noqa: N801
    def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any = None) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1


def __getattr__(name: str) -> Any:
    if not name.startswith("Tiny_"):
        raise AttributeError(name)
    return type(name, (TinyMixin, getattr(layertune_nnunet, name.removeprefix("Tiny_"))), {})

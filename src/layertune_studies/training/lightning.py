"""Lightning's Trainer as the loop of a study, and a Trainer that shows and writes nothing."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from layertune_lightning import LayerFreezeCallback, MetaLRCallback
from layertune_studies.data.case import Batch
from layertune_studies.training.loop import Part, Run, Training, TrainingResult
from layertune_studies.training.network import device

__all__ = ["LightningPart", "StudyModule", "quiet", "quiet_trainer"]

LOGGERS = ("pytorch_lightning", "lightning.pytorch")  # of Lightning's two packages, whichever was imported last
ADVICE = (
    "The '.*_dataloader' does not have many workers",
    "You defined a `validation_step` but have no",
    ".isinstance.treespec, LeafSpec.. is deprecated",  # Lightning 2.6 and torch 2.15
)


class StudyModule(pl.LightningModule):
    """A network with its loss and its optimizer, as a user of Lightning writes it.

    Args:
        run: The network, its optimizer and its schedule.
        loss_of: The loss, called with the network's output and the labels.
    """

    def __init__(self, run: Run, loss_of: nn.Module) -> None:
        super().__init__()
        self.network = run.network
        self.loss_of = loss_of
        self.run = run

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        loss: Tensor = self.loss_of(self.network(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its schedule, which counts steps."""
        if self.run.schedule is None:
            return self.run.optimizer
        schedule = {"scheduler": self.run.schedule, "interval": "step"}
        return {"optimizer": self.run.optimizer, "lr_scheduler": schedule}


class LightningPart(Part):
    """A training by Lightning's Trainer, in which layertune's callbacks freeze layers and learn rates.

    Batches, network, optimizer and schedule are those of the study's own loop, so both give the same result.
    """

    def restricted(self, run: Run) -> AbstractContextManager[object]:  # noqa: ARG002
        """Silence Lightning; the callbacks freeze and attach."""
        return quiet()

    def attach(self, run: Run) -> None:
        """Leave that to the callback."""

    def take_steps(self, run: Run, trained: TrainingResult) -> None:
        """Fit for one epoch of as many batches as there are steps."""
        self.learner = self._learner()
        callbacks = [_Record(self.training, trained), *self._freezes(), *([self.learner] if self.learner else [])]
        # Not "auto", which takes other accelerators than the study's own loop, such as Apple's.
        accelerator = "gpu" if device().type == "cuda" else "cpu"
        trainer = quiet_trainer(accelerator=accelerator, max_epochs=1, limit_val_batches=0, callbacks=callbacks)
        module = StudyModule(run, self.training.loss_of).to(next(run.network.parameters()).device)
        trainer.fit(module, _Batches(self.training.task.batch, range(self.steps)))

    def report(self, run: Run, trained: TrainingResult) -> None:  # noqa: ARG002
        """Add the learned rates to the outcome."""
        if self.learner is not None:
            trained.set_profile(self.learner.lrs, self.learner.profile)

    def _freezes(self) -> list[pl.Callback]:
        if all(self.policy(self.training.layers)):
            return []
        return [LayerFreezeCallback(self.policy, layers=self.training.layers)]

    def _learner(self) -> MetaLRCallback | None:
        options = self.method.learner_options()
        if options is None:
            return None
        meta_batch = self.training.task.meta_batch
        if meta_batch is None or options["streaming"]:
            return MetaLRCallback(**options)
        due = range(options["every"] - 1, self.steps, options["every"])
        return MetaLRCallback(**options, meta_loader=_Batches(meta_batch, due))


class _Batches:
    """The batches of some steps, which can be iterated over again and again."""

    def __init__(self, batch: Callable[[int], Batch], steps: Sequence[int]) -> None:
        self.batch = batch
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, self.steps)


class _Record(pl.Callback):
    """Records steps and losses, and ends the fit where the loss is not finite any more."""

    def __init__(self, training: Training, trained: TrainingResult) -> None:
        self.training = training
        self.trained = trained
        self.start = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ARG002
        self.training.measure(self.trained)
        pl_module.train()  # measuring leaves the network in eval mode
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ARG002
        self.trained.seconds.append(time.perf_counter() - self.start)
        self.trained.steps += 1
        self.trained.losses.append(float(outputs["loss"]))
        self.training.tell(self.trained.steps)
        if not math.isfinite(self.trained.losses[-1]):
            trainer.should_stop = True


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's notices and advice for the length of the block; other warnings are shown."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for advice in ADVICE:
            warnings.filterwarnings("ignore", message=advice)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def quiet_trainer(**options: Any) -> pl.Trainer:
    """Make a Trainer on one device, by default the CPU, that shows and writes nothing.

    Args:
        options: Further options of the Trainer.

    Example:
        >>> with quiet():
        ...     trainer = quiet_trainer(max_steps=3)
        >>> trainer.max_steps, trainer.loggers
        (3, [])
    """
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**defaults, **options})

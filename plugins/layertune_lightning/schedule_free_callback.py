"""ScheduleFreeCallback: the weights to evaluate and to save, where a schedule-free optimizer trains others."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from layertune.hosts.evaluation_weights import HasModes, renew_statistics
from layertune_lightning.two_packages import Callback

__all__ = ["ScheduleFreeCallback"]


def _first(batch: Any) -> Tensor:
    tensor: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
    return tensor


class ScheduleFreeCallback(Callback):
    """Switch the weights of schedule-free optimizers between training, evaluation and the end of an epoch.

    An optimizer of the package ``schedulefree`` trains at one point and is evaluated at another. This callback calls
    its ``train()`` before each training batch and its ``eval()`` before each validation, at the end of each epoch and
    at the end of the fit. So checkpoints of ``ModelCheckpoint`` that are saved after a validation or an epoch hold the
    weights to evaluate. Those that are saved between training batches (``every_n_train_steps``) hold the weights to
    train.

    Batch norms need their running statistics renewed before an evaluation, as the README of ``schedulefree`` says: give
    a loader of training batches.

    Args:
        loader: A loader of training batches, from which the statistics of batch norms are renewed. It is read before
            each validation and at the end of each epoch.
        batches: The number of batches that are read, >= 1.
        inputs: A function from a batch to the input of the module's ``forward``. Default: its first element.

    Warns:
        UserWarning: The module has batch norms, and no loader was given.

    Example:
        >>> trainer = pl.Trainer(callbacks=[ScheduleFreeCallback()], logger=False)
    """

    def __init__(
        self,
        *,
        loader: Iterable[Any] | None = None,
        batches: int = 50,
        inputs: Callable[[Any], Tensor] = _first,
    ) -> None:
        self.loader, self.batches, self.inputs = loader, batches, inputs

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn of batch norms whose statistics will not fit."""
        if self.loader is None and _modes(trainer) and _has_statistics(pl_module):
            warnings.warn(
                f"{type(pl_module).__name__} has batch norms, whose statistics belong to the weights that a "
                "schedule-free optimizer trains and not to those that are evaluated; give ScheduleFreeCallback a "
                "loader of training batches",
                stacklevel=2,
            )

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Put the weights to train in place."""
        for optimizer in _modes(trainer):
            optimizer.train()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights to evaluate in place."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._prepare_evaluation(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights to save in place."""
        self._prepare_evaluation(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the weights to evaluate in the module."""
        self._prepare_evaluation(trainer, pl_module)

    def _prepare_evaluation(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        optimizers = _modes(trainer)
        if not any(group["train_mode"] for optimizer in optimizers for group in optimizer.param_groups):
            return  # they are in place, and the statistics fit
        for optimizer in optimizers:
            optimizer.eval()
        if self.loader is not None:
            renew_statistics(module, self._read(trainer, self.loader))

    def _read(self, trainer: pl.Trainer, loader: Iterable[Any]) -> Iterator[Tensor]:
        for batch in islice(loader, self.batches):
            yield self.inputs(trainer.strategy.batch_to_device(batch))


def _modes(trainer: pl.Trainer) -> list[Any]:
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, HasModes)]


def _has_statistics(module: nn.Module) -> bool:
    return any(part._buffers.get("running_mean") is not None for part in module.modules())

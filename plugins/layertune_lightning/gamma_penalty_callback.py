"""GammaPenaltyCallback: the BNScale penalty in Lightning."""

from typing import Unpack

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune import GammaPenalty
from layertune.hosts.gamma_penalty import PenaltyOptions, PenaltySession, PenaltySettings
from layertune_lightning.two_packages import Callback

__all__ = ["GammaPenaltyCallback", "grad_scale"]


class GammaPenaltyCallback(Callback):
    """Keep all gammas large and alike while the Trainer trains; see ``layertune.GammaPenalty`` for the penalty.

    The module and its loss stay as they are. The penalty's gradient is added to that of the loss before each optimizer
    step, once for all batches that the step accumulates, and before gradients are clipped. The logged loss does not
    contain the penalty. With several optimizers each gets the part of the gammas that it holds.

    Args:
        **settings: ``alpha``, ``beta``, ``weight`` and ``absolute`` of ``layertune.GammaPenalty``, with the defaults
            of that class.

    Attributes:
        penalty: The penalty, while a fit runs.

    Raises:
        AlchemyError: At once, for a setting out of range. When the fit starts, if another callback adds a penalty for
            the same gammas. A module without gammas gets a warning.

    Example:
        >>> trainer = pl.Trainer(callbacks=[GammaPenaltyCallback(weight=1e-4)], logger=False)
    """

    def __init__(self, **settings: Unpack[PenaltyOptions]) -> None:
        self.settings = PenaltySettings.given(**settings)
        self._session = PenaltySession(self.settings, owner=type(self).__name__)

    @property
    def penalty(self) -> GammaPenalty | None:
        """The penalty, while a fit runs."""
        return self._session.penalty

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the gammas: the module is complete."""
        self._session.begin(pl_module, trainer.optimizers)

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        """Add the gradient: that of the loss is reduced, unscaled and not clipped yet."""
        self._session.add_gradient(optimizer, scale=grad_scale(trainer, optimizer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Release the gammas."""
        self._session.end()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Release the gammas."""
        self._session.end()


def grad_scale(trainer: pl.Trainer, optimizer: Optimizer) -> Tensor | float:
    """Return the factor on all gradients when callbacks see them.

    It is 1, except where the optimizer unscales in its own step, as fused optimizers do under a ``GradScaler``.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    scale: Tensor = scaler.scale(torch.ones((), device=trainer.strategy.root_device))
    return scale

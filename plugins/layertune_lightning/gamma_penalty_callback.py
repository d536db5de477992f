"""GammaPenaltyCallback: the BNScale penalty in Lightning."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune import GammaPenalty
from layertune_lightning.two_packages import Callback

__all__ = ["GammaPenaltyCallback", "grad_scale"]


class GammaPenaltyCallback(Callback):
    """Ask all gammas to be large and alike while the Trainer trains; see ``layertune.GammaPenalty`` for the penalty.

    The module and its loss stay as they are: the penalty's gradient is added to that of the loss before each optimizer
    step, once for all batches that the step accumulates, before gradients are clipped. The loss that is logged does
    not hold it. With several optimizers each gets the part of the gammas that it holds.

    Args:
        alpha: weight of the gammas' mean.
        beta: weight of their standard deviation.
        weight: lambda; 0 changes nothing, bit for bit.
        absolute: read |gamma| in place of gamma.

    Attributes:
        penalty: what is added, from the start of a fit on.

    Raises:
        AlchemyError: when the fit starts, for a setting out of range. A module without gammas gets a warning.

    Example:
        >>> trainer = pl.Trainer(callbacks=[GammaPenaltyCallback(weight=1e-4)], logger=False)
    """

    def __init__(self, *, alpha: float = 0.1, beta: float = 1.0, weight: float = 1e-4, absolute: bool = False) -> None:
        self.settings: dict[str, Any] = {"alpha": alpha, "beta": beta, "weight": weight, "absolute": absolute}
        self.penalty: GammaPenalty | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Find the gammas: the module is complete."""
        self.penalty = GammaPenalty(pl_module, **self.settings)

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        """Add the gradient: that of the loss is reduced, unscaled and not clipped yet."""
        if self.penalty is not None:
            self.penalty.add_gradient(optimizer, scale=grad_scale(trainer, optimizer))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Let go of the gammas."""
        self.penalty = None

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: the settings."""
        return {**vars(self), "penalty": None}


def grad_scale(trainer: pl.Trainer, optimizer: Optimizer) -> Tensor | float:
    """What gradients are multiplied by when callbacks see them: 1, but where the optimizer's own step unscales."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    scale: Tensor = scaler.scale(torch.ones((), device=trainer.strategy.root_device))
    return scale

"""AutoRGNCallback: rates by relative gradient norms, in Lightning."""

import pytorch_lightning as pl

from layertune import AutoRGN, OptimizerError
from layertune.rates.auto_rgn import BATCHES
from layertune_lightning.two_packages import Callback

__all__ = ["AutoRGNCallback"]


class AutoRGNCallback(Callback):
    """Multiply each layer's rate by its relative gradient norm during a fit; see ``layertune.AutoRGN`` for the method.

    The optimizer's param groups name the layers: build it from ``layertune.param_groups``. The averaged norms are saved
    with the optimizer's state in every checkpoint.

    Args:
        batches: The number of training gradients that are averaged, >= 1.
        optimizer: Index of the optimizer, for a module with several.

    Attributes:
        auto_rgn: The attached ``AutoRGN``, or that of the last fit.

    Raises:
        OptimizerError: At once if ``batches`` is below 1; at the start of the fit if the groups make up one layer, the
            optimizer does not exist, or its rates are multiplied already, for instance by a ``MetaLRCallback``.

    Example:
        >>> trainer = pl.Trainer(callbacks=[AutoRGNCallback()], logger=False)
    """

    def __init__(self, *, batches: int = BATCHES, optimizer: int = 0) -> None:
        if batches < 1:
            raise OptimizerError(f"batches must be at least 1, not {batches}")
        self.batches, self.optimizer = batches, optimizer
        self.auto_rgn: AutoRGN | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Attach: the optimizers exist."""
        if self.optimizer not in range(len(trainer.optimizers)):
            raise OptimizerError(
                f"AutoRGNCallback(optimizer={self.optimizer!r}) names none of the {len(trainer.optimizers)} optimizers "
                "that configure_optimizers gave; they count from 0"
            )
        self.auto_rgn = AutoRGN(trainer.optimizers[self.optimizer], batches=self.batches)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Detach."""
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        if self.auto_rgn is not None:
            self.auto_rgn.detach()

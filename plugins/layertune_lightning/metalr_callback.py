"""MetaLRCallback: learned rates in Lightning."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Unpack

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import nn
from torch.optim import Optimizer

from layertune import ModelError, OptimizerError
from layertune.hosts.alchemy_session import AlchemyPhases
from layertune.hosts.endless_data import Share
from layertune.hosts.meta_learner import LearnerHolder, MetaLearner
from layertune.hosts.module_layers import Layers
from layertune.metalr.settings import MetaLROptions
from layertune_lightning.example_inputs import FOR_LAYERS, example_inputs
from layertune_lightning.meta_step import backward_of_meta_batch, check_meta_step, has_loss
from layertune_lightning.report import check_figure, log_lrs, report_profile
from layertune_lightning.two_packages import Callback, callbacks_of

__all__ = ["MetaLRCallback"]


class MetaLRCallback(LearnerHolder, Callback):
    """Learn one learning rate per layer while the Trainer trains; see ``layertune.MetaLR`` for the method.

    The module, its optimizer and its schedulers stay as they are: the callback attaches to the optimizer when the fit
    starts and detaches when it ends. What was learned is saved with the optimizer's state in every checkpoint, and a
    resumed fit goes on exactly. The rates are logged as ``lr/<layer>``. Beside an ``AlchemyCallback``, rates are
    learned from the maximisation on.

    After a step that is due, a meta batch goes through the module's ``meta_step(batch, batch_idx)``, or else through
    its ``training_step`` with logging muted. Random numbers, running statistics, metrics, attributes of the module and
    the training gradients are then as before. What a step does outside the module, for example writing to
    ``self.logger.experiment``, is not undone; write a ``meta_step`` in that case.

    Args:
        meta_loader: The loader of meta batches. Default: the datamodule's ``meta_dataloader()``, or else the training
            data in another order.
        layers: The layers of the module or of a network inside it, or a function from the module to them. Default: the
            layers that the param groups name, or else those that a trace of ``example_input_array`` finds.
        optimizer: Index of the optimizer, for a module with several; each may have its own callback.
        figure: One more file for the figure of the learned rates, in any format that matplotlib writes. A logger that
            takes figures gets the figure in any case.
        output_dir: The folder for ``learned_rates.json`` (an ``LRProfile``) and ``learned_rates.png``, written when the
            fit ends. Default: none is written.
        **settings: ``hyper_lr``, ``rule``, ``min_lr``, ``max_lr``, ``max_change``, ``every`` and ``streaming`` of
            ``layertune.MetaLR``, with the defaults of that class.

    Attributes:
        settings: The complete settings, a ``MetaLRSettings``.
        metalr: The attached ``MetaLR``, during a fit.
        lrs: The learning rate of each layer, now or at the end of the last fit.
        profile: The rates over time, up to now or in the last fit; ``None`` before any was learned.

    Raises:
        LayertuneError: At once, for a setting out of range or a figure that matplotlib cannot write. When the fit
            starts, for layers or an optimizer that cannot serve. At the first meta pass, for a meta batch that cannot.

    Example:
        >>> callback = MetaLRCallback(hyper_lr=0.1, streaming=True)
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False)
    """

    def __init__(
        self,
        *,
        meta_loader: Iterable[Any] | None = None,
        layers: Layers | None = None,
        optimizer: int = 0,
        figure: str | Path | None = None,
        output_dir: str | Path | None = None,
        **settings: Unpack[MetaLROptions],
    ) -> None:
        self._learner = MetaLearner(meta_loader, layers, **settings)
        check_figure(figure)
        self.optimizer, self.figure, self.output_dir = optimizer, figure, output_dir
        self._training_batch: Any = None
        self._saw_batch = self._had_loss = False

    @property
    def state_key(self) -> str:
        """A key for each optimizer, so that several callbacks can be saved side by side."""
        return self._generate_state_key(optimizer=self.optimizer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: the optimizers exist, and Lightning restores their saved state after this hook."""
        self._learner.forget()
        if not self.settings.streaming:
            check_meta_step(pl_module)
        self._saw_batch = self._had_loss = False
        if not _freezes_layers(trainer):
            self._attach(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Open the meta batches: the training data exists."""
        if self.metalr is not None:
            self._open_batches(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach now if Network Alchemy froze layers before."""
        if self.metalr is None and not _freezes_layers(trainer):
            self._attach(trainer, pl_module)
            self._open_batches(trainer)

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log the rates of the coming step."""
        self._training_batch = batch
        if self.metalr is not None:
            log_lrs(trainer, self.metalr)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Release the batch."""
        self._training_batch, self._saw_batch = None, True
        self._had_loss = self._had_loss or not pl_module.automatic_optimization or has_loss(outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Refuse a module that never gives a loss: Lightning skips single batches without one, and here all of them."""
        # A fit that resumes at the end of an epoch's last validation ends that epoch without any batch.
        if self._saw_batch and not self._had_loss:
            raise ModelError(
                f"training_step of {type(pl_module).__name__} gave no loss in a whole epoch, so there is nothing to "
                "learn from; return the loss, a tensor that depends on the parameters"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Report what was learned."""
        if trainer.is_global_zero and self.profile is not None:
            report_profile(trainer, self.profile, output_dir=self.output_dir, figure=self.figure)

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Save what was learned also after the fit or its exception, when nothing is attached any more."""
        # After Trainer.validate a checkpoint holds the state of no optimizer.
        states = checkpoint.get("optimizer_states", ())
        if self.optimizer < len(states) and (state := states[self.optimizer]):
            self._learner.complete(state["param_groups"])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Detach."""
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Detach."""
        if stage == "fit":
            self._detach()

    def _attach(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        def step(batch: Any, number: int) -> Any:
            return backward_of_meta_batch(trainer, batch, number, self._training_batch)

        def wrapped() -> nn.Module:
            return module if trainer.strategy.model is None else trainer.strategy.model

        def inputs() -> tuple[Any, ...]:
            return example_inputs(module, FOR_LAYERS)

        self._learner.attach(self._optimizer_of(trainer.optimizers), module, inputs, step=step, wrapped=wrapped)

    def _optimizer_of(self, optimizers: list[Optimizer]) -> Optimizer:
        if self.optimizer not in range(len(optimizers)):
            raise OptimizerError(
                f"MetaLRCallback(optimizer={self.optimizer!r}) names none of the {len(optimizers)} optimizers that "
                "configure_optimizers gave; they count from 0"
            )
        return optimizers[self.optimizer]

    def _open_batches(self, trainer: pl.Trainer) -> None:
        seed = trainer.strategy.broadcast(torch.initial_seed() % 2**63)
        ranks = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        datamodule: Any = getattr(trainer, "datamodule", None)
        # Asked only where its answer is used: making the loader may be expensive.
        asks = self._learner.needs_loader and hasattr(datamodule, "meta_dataloader")
        self._learner.open_batches(
            trainer.train_dataloader,
            seed,
            Share(ranks["rank"], ranks["num_replicas"]),
            loader=datamodule.meta_dataloader() if asks else None,
        )

    def _detach(self) -> None:
        self._learner.detach()
        self._training_batch = None

    def __getstate__(self) -> dict[str, Any]:
        """Hand another process the settings, and not the batch of this one."""
        return {**vars(self), "_training_batch": None}


def _freezes_layers(trainer: pl.Trainer) -> bool:
    """Return whether Network Alchemy still freezes layers, or will still modify kernels."""
    return any(isinstance(callback, AlchemyPhases) and not callback.maximises for callback in callbacks_of(trainer))

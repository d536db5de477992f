"""MetaLRCallback: learned rates in Lightning."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from layertune import LRProfile, MetaLR, ModelError, OptimizerError, meta_pass
from layertune.hosts.endless_data import Share, over_same_data
from layertune.hosts.meta_batches import MetaBatches
from layertune.layers.layer import parameters_by_layer
from layertune.metalr.meta_pass import kept_gradients
from layertune_lightning.alchemy_callback import still_freezes
from layertune_lightning.meta_step import backward_of_meta_batch, check_meta_step, has_loss
from layertune_lightning.module_layers import Layers, find_layers
from layertune_lightning.report import check_figure, log_lrs, report_profile
from layertune_lightning.two_packages import Callback

__all__ = ["MetaLRCallback"]


class MetaLRCallback(Callback):
    """Learn one learning rate per layer while the Trainer trains; see ``layertune.MetaLR`` for the method.

    The module, its optimizer and its schedulers stay as they are: the callback attaches to the optimizer when the fit
    starts and detaches when it ends. What was learned is saved with the optimizer's state in every checkpoint, and a
    resumed fit goes on exactly. The rates are logged as ``lr/<layer>``.

    After a step that is due, a meta batch goes through the module's ``meta_step(batch, batch_idx)``, or else through
    its ``training_step`` with logging muted, and leaves nothing but the learned rates and the corrected step: random
    numbers, running statistics, metrics, attributes of the module and the training gradients are as before. What a
    step does outside the module, as writing to ``self.logger.experiment``, is not undone: write a ``meta_step`` then.

    Args:
        hyper_lr: eta, the step size of the learning rates; 0 changes nothing, bit for bit. By default what suits the
            rule; the additive one has no default.
        rule: ``"joint"``, ``"cosine"``, ``"proportional"`` or ``"additive"`` (the paper's eq. 3).
        every: learn at each k-th optimizer step; a step costs 1 + 1/k passes.
        streaming: take the next training batch as the meta batch, at no extra pass.
        min_lr: floor of the learned rates.
        max_lr: ceiling, if any.
        max_change: largest factor, up or down, of one adaptation.
        meta_loader: where meta batches come from, again and again; by default the datamodule's
            ``meta_dataloader()``, or else the training data in an order of its own.
        layers: the layers of the module or of a network in it, or a function from the module to them. By default the
            layers that the param groups name, or else those traced from ``example_input_array``.
        optimizer: index of the optimizer, for a module with several; each may have a callback.
        figure: One more file for the figure of the learned rates, in any format that matplotlib writes. A logger that
            takes figures gets the figure in any case.
        output_dir: The folder for ``learned_rates.json`` (an ``LRProfile``) and ``learned_rates.png``, written when the
            fit ends. Default: none is written.

    Attributes:
        metalr: what is attached, during a fit.
        lrs: the learning rate of each layer, now or at the end of the last fit.
        profile: what was learned over time, now or by the end of the last fit; ``None`` before anything was learned.

    Raises:
        LayertuneError: when the fit starts, for settings, layers or an optimizer that will not do; at the first meta
            pass for a meta batch that will not do.

    Example:
        >>> callback = MetaLRCallback(hyper_lr=0.1, streaming=True)
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False)
    """

    def __init__(
        self,
        *,
        hyper_lr: float | None = None,
        rule: str = "joint",
        every: int = 1,
        streaming: bool = False,
        min_lr: float = 1e-6,
        max_lr: float | None = None,
        max_change: float = 2.0,
        meta_loader: Iterable[Any] | None = None,
        layers: Layers | None = None,
        optimizer: int = 0,
        figure: str | Path | None = None,
        output_dir: str | Path | None = None,
    ) -> None:
        self.settings: dict[str, Any] = {
            "hyper_lr": hyper_lr,
            "rule": rule,
            "every": every,
            "streaming": streaming,
            "min_lr": min_lr,
            "max_lr": max_lr,
            "max_change": max_change,
        }
        self.meta_loader = meta_loader
        if streaming and meta_loader is not None:
            warnings.warn("meta_loader has no effect with streaming=True: the next batch is used", stacklevel=2)
        self.layers = layers
        self.optimizer = optimizer
        self.figure = figure
        self.output_dir = output_dir
        self.metalr: MetaLR | None = None
        self._hook: RemovableHandle | None = None
        self._batches: MetaBatches | None = None
        self._training_batch: Any = None
        self._position: dict[str, int] | None = None
        self._lrs: dict[str, float] = {}
        self._profile: LRProfile | None = None
        self._left: list[dict[str, Any]] = []
        self._had_loss = False

    @property
    def lrs(self) -> dict[str, float]:
        """The learning rate of each layer, now or at the end of the last fit."""
        return self.metalr.lrs if self.metalr else dict(self._lrs)

    @property
    def profile(self) -> LRProfile | None:
        """What was learned over time, now or by the end of the last fit."""
        if self.metalr is None:
            return self._profile
        return self.metalr.profile() if self.metalr.history else None

    @property
    def state_key(self) -> str:
        """One for each optimizer, so that several callbacks can be saved side by side."""
        return self._generate_state_key(optimizer=self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The position in the meta batches; what was learned is saved with the optimizer."""
        position = self._batches.position if self._batches else self._position
        return {} if position is None else {"meta_batches": position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the position until the fit starts."""
        self._position = state_dict.get("meta_batches")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: the optimizers exist, and their saved state comes after this."""
        if self.metalr is not None:
            self._release()
        check_figure(self.figure)
        if not self.settings["streaming"]:
            check_meta_step(pl_module)
        self._left = []
        self._had_loss = False
        if not still_freezes(trainer):
            self._attach(trainer, pl_module)

    def _attach(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer = self._chosen(trainer.optimizers)
        self.metalr = MetaLR(optimizer, **self.settings, layers=self._layers_for(optimizer, pl_module))

        def adapt(*_: Any) -> None:
            self._adapt(trainer)

        # After MetaLR's own, before schedulers and averaging callbacks.
        self._hook = optimizer.register_step_post_hook(adapt)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Find the meta batches: the training data is there."""
        if self.metalr is None:
            return
        if not self.settings["streaming"]:
            self._batches = self._find_batches(trainer)
            if self._position is not None:
                self._batches.go_to(self._position)
        self._position = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach now if Network Alchemy had phases before, in which not all layers trained."""
        if self.metalr is None and not still_freezes(trainer):
            self._attach(trainer, pl_module)
            self.on_train_start(trainer, pl_module)

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
        """Let go of the batch."""
        self._training_batch = None
        self._had_loss = self._had_loss or not pl_module.automatic_optimization or has_loss(outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Refuse a module that never gives a loss: Lightning leaves single batches out, and never steps here."""
        if not self._had_loss:
            raise ModelError(
                f"training_step of {type(pl_module).__name__} gave no loss in a whole epoch, so there is nothing to "
                "learn from; return the loss, a tensor that depends on the parameters"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Draw what was learned."""
        if trainer.is_global_zero and self.profile is not None:
            report_profile(trainer, self.profile, output_dir=self.output_dir, figure=self.figure)

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Save what was learned also after the fit, or on its exception, when nothing is attached any more."""
        if self._left and checkpoint["optimizer_states"][self.optimizer]:
            groups = checkpoint["optimizer_states"][self.optimizer]["param_groups"]
            for group, left in zip(groups, self._left, strict=True):
                group.update(left)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Detach."""
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Detach."""
        if stage == "fit":
            self._release()

    def _chosen(self, optimizers: list[Optimizer]) -> Optimizer:
        if self.optimizer not in range(len(optimizers)):
            raise OptimizerError(
                f"MetaLRCallback(optimizer={self.optimizer!r}) names none of the {len(optimizers)} optimizers that "
                "configure_optimizers gave; they count from 0"
            )
        return optimizers[self.optimizer]

    def _layers_for(self, optimizer: Optimizer, module: pl.LightningModule) -> dict[str, list[Any]] | None:
        """``None`` where the param groups say it."""
        if self.layers is None and any("layer" in group for group in optimizer.param_groups):
            return None
        return dict(parameters_by_layer(*find_layers(module, self.layers)))

    def _find_batches(self, trainer: pl.Trainer) -> MetaBatches:
        seed = trainer.strategy.broadcast(torch.initial_seed() % 2**63)
        ranks = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        share = Share(ranks["rank"], ranks["num_replicas"])
        loader: Any = self.meta_loader
        datamodule: Any = getattr(trainer, "datamodule", None)
        if loader is None and hasattr(datamodule, "meta_dataloader"):
            loader = datamodule.meta_dataloader()
        if loader is None:
            loader = over_same_data(trainer.train_dataloader, seed, share)
        return MetaBatches(loader, seed, share)

    def _adapt(self, trainer: pl.Trainer) -> None:
        """The meta pass, right after the optimizer's step and before any scheduler's."""
        if self.metalr is None or self._batches is None or not self.metalr.due:
            return
        module, batches = trainer.lightning_module, self._batches
        views = bool(getattr(trainer.strategy.model, "gradient_as_bucket_view", False))
        with kept_gradients(module, shared=views):
            with meta_pass(module):
                number = batches.drawn
                scale = backward_of_meta_batch(trainer, next(batches), number, self._training_batch)
            self.metalr.adapt(scale)

    def _release(self) -> None:
        """Detach, and keep what was learned for a checkpoint that is still to come."""
        metalr, self.metalr = self.metalr, None
        if metalr is None:
            return
        if self._hook is not None:
            self._hook.remove()
        self._training_batch = None
        try:
            self._lrs = metalr.lrs
            self._profile = metalr.profile() if metalr.history else None
            saved = metalr.optimizer.state_dict()["param_groups"]
        finally:
            metalr.detach()
        groups = metalr.optimizer.param_groups
        left = [
            {key: value for key, value in state.items() if key not in group}
            for state, group in zip(saved, groups, strict=True)
        ]
        self._left = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), left)
        self._position = self.state_dict().get("meta_batches")
        self._batches = None

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: the settings, not what is attached."""
        return {**vars(self), "metalr": None, "_hook": None, "_batches": None, "_training_batch": None}

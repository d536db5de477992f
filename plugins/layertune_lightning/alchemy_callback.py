"""AlchemyCallback: the three phases of Network Alchemy in Lightning."""

import logging
from typing import Any, Unpack

import pytorch_lightning as pl
from torch.optim import Optimizer

from layertune import AlchemyError, Convergence, OptimizerError
from layertune.alchemy.convergence import DEFAULT_IDENTIFICATION
from layertune.hosts.alchemy_session import AlchemyHolder, AlchemySession
from layertune.hosts.alchemy_settings import AlchemyOptions, AlchemySettings
from layertune_lightning.example_inputs import example_inputs
from layertune_lightning.gamma_penalty_callback import grad_scale
from layertune_lightning.two_packages import Callback

__all__ = ["AlchemyCallback"]

logger = logging.getLogger("layertune_lightning")

_VALUE = "metric"  # the key in a checkpoint, beside those of the phases


class AlchemyCallback(AlchemyHolder, Callback):
    """Train in the phases of Network Alchemy; see ``layertune.Alchemy`` for the method.

    The module, its optimizer and its schedulers stay as they are. From the start of the fit until the identification
    ends, everything but the norms is frozen; in the maximisation the penalty's gradient is added to that of the loss.
    The phases count the Trainer's epochs. With a ``monitor``, in a fit with validation data, they count only epochs in
    which the module was validated. The end of the maximisation ends the fit.

    Phase, progress and redundant kernels are saved in every checkpoint, and a resumed fit goes on exactly. A later fit
    with the same callback goes on where the last one ended. A ``MetaLRCallback`` beside it attaches when the
    maximisation begins.

    Args:
        monitor: Name of a logged metric that shows convergence, reduced over all processes (``sync_dist=True``). A
            phase with a fixed number of epochs needs none.
        identification: When the identification ends. ``None`` leaves it out: the gammas are judged as they are when the
            fit starts. Default: after 5 epochs without a better metric, or after 100 epochs.
        **settings: ``threshold``, ``quantile``, ``whole_layers``, ``modification``, ``maximisation``, ``biases``,
            ``head`` and ``seed`` of ``layertune.Alchemy``, and ``alpha``, ``beta``, ``weight`` and ``absolute`` of
            ``layertune.GammaPenalty``, with the defaults that these classes have.

    Attributes:
        alchemy: The phases, from the start of a fit on: ``phase``, ``history``, ``redundant``.

    Raises:
        AlchemyError: At once, for a setting out of range, or if a phase waits for a plateau and there is no monitor.
            When the fit starts, beside a ``GammaPenaltyCallback``, whose penalty would count twice. At an epoch's end,
            for a metric that was not logged, or a modification that is refused.
        ModelError: When the fit starts, for a module without gammas or without ``example_input_array``.
        OptimizerError: When the fit starts, for a module with several optimizers.

    Example:
        >>> callback = AlchemyCallback(monitor="val_loss", threshold=0.05)
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False)
    """

    def __init__(
        self,
        *,
        monitor: str | None = None,
        identification: Convergence | None = DEFAULT_IDENTIFICATION,
        **settings: Unpack[AlchemyOptions],
    ) -> None:
        record = AlchemySettings.given(identification=identification, **settings)
        record.require_metric(monitor is not None, "AlchemyCallback(monitor=...) the name of a logged metric")
        self._session = AlchemySession(record, owner=type(self).__name__)
        self.monitor = monitor
        self._validated = self._loaded = False
        self._value: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the phases, and freeze; Lightning restores the optimizer's saved state after this hook."""
        if len(trainer.optimizers) != 1:
            raise OptimizerError(
                f"AlchemyCallback trains a network with one optimizer, and configure_optimizers of "
                f"{type(pl_module).__name__} gave {len(trainer.optimizers)}; use layertune.Alchemy in a loop of yours"
            )
        inputs = example_inputs(pl_module, "train it in a loop of your own with layertune.Alchemy")
        self._session.begin(pl_module, trainer.optimizers[0], *inputs)
        if not self._loaded:
            self._validated, self._value = False, None
        self._loaded = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Do a modification that waits: there was no identification, or the modification was refused."""
        if self._session.modify_if_due():
            logger.info(self._session.message)

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        """Add the penalty's gradient: that of the loss is reduced, unscaled and not clipped yet."""
        self._session.add_gradient(scale=grad_scale(trainer, optimizer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Remember that the metric is new, and its value for a checkpoint that is saved before the epoch ends."""
        if self.monitor is None or trainer.sanity_checking or not self._session.running:
            return
        value = trainer.callback_metrics.get(self.monitor)
        self._validated, self._value = True, None if value is None else float(value)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Count an epoch, before Lightning saves checkpoints."""
        validates = self.monitor is not None and sum(trainer.num_val_batches) > 0
        if validates and not self._validated:
            return
        metric = self._metric(trainer)
        self._validated, self._value = False, None
        if self._session.end_epoch(metric):
            logger.info(self._session.message)
            trainer.should_stop = trainer.should_stop or self._session.phase == "finished"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Warn of a fit in which only the norms were trained."""
        if self._session.unfinished:
            logger.warning(self._session.unfinished)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the phases, and the metric of a validation whose epoch is not counted yet."""
        state = self._session.state_dict()
        return state if self._value is None else {**state, _VALUE: self._value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state; version 0.1 saved no metric."""
        self._session.load_state_dict({key: value for key, value in state_dict.items() if key != _VALUE})
        self._value = state_dict.get(_VALUE)
        self._validated, self._loaded = self._value is not None, True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Unfreeze."""
        self._session.end()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Unfreeze."""
        if stage == "fit":
            self._session.end()

    def _metric(self, trainer: pl.Trainer) -> float | None:
        """Return the metric of the first process, so that all processes change phase together."""
        if self.monitor is None:
            return None
        # A fit that resumes between a validation and the end of its epoch has logged nothing yet.
        value = trainer.callback_metrics.get(self.monitor, self._value)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise AlchemyError(
                f"AlchemyCallback(monitor={self.monitor!r}) names no metric that was logged; logged by now: {known}. "
                "Log it in validation_step or training_step with self.log(name, value, on_epoch=True)"
            )
        return float(trainer.strategy.broadcast(float(value)))

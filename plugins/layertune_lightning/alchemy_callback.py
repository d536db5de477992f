"""AlchemyCallback: the three phases of Network Alchemy in Lightning."""

import logging
from collections.abc import Collection
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer

from layertune import Alchemy, AlchemyError, Convergence, GammaPenalty, OptimizerError, gammas
from layertune.alchemy.convergence import check_rules
from layertune.alchemy.phases import USUAL
from layertune_lightning.gamma_penalty_callback import GammaPenaltyCallback, grad_scale
from layertune_lightning.module_layers import example_inputs
from layertune_lightning.two_packages import Callback, callbacks_of

__all__ = ["AlchemyCallback", "still_freezes"]

logger = logging.getLogger("layertune_lightning")


class AlchemyCallback(Callback):
    """Train in the phases of Network Alchemy; see ``layertune.Alchemy`` for the method.

    The module, its optimizer and its schedulers stay as they are: all but the norms is frozen from the start of the
    fit until the identification ends, and the penalty's gradient is added to the loss's in the maximisation. An epoch
    ends with the Trainer's; with a ``monitor``, in data that is validated, with one that had a validation. Phase,
    progress and what started afresh are saved in every checkpoint, and a resumed fit goes on exactly. The end of the
    maximisation ends the fit. A later fit of the same callback goes on where the last one ended. A ``MetaLRCallback``
    beside it attaches when the maximisation begins.

    Args:
        monitor: name of the logged metric that tells convergence, reduced over all processes (``sync_dist=True``);
            ``None`` where phases have budgets only.
        threshold: a kernel whose |gamma| lies below it is redundant; 0.05 if no quantile is given.
        quantile: instead, the share of kernels to start afresh.
        whole_layers: let all kernels of a layer start afresh, which is refused otherwise.
        identification: when it ends; ``None`` judges the gammas as they are when the fit starts.
        modification: whether redundant kernels start afresh.
        maximisation: when it ends, and the fit with it; ``None`` for as long as the Trainer trains.
        alpha: weight of the gammas' mean in the penalty.
        beta: weight of their standard deviation.
        weight: lambda; 0 for no penalty.
        absolute: whether the penalty reads |gamma| in place of gamma.
        biases: whether biases train in the identification too.
        head: names of parameters of the module that train in the identification too.
        seed: of the new kernels.

    Attributes:
        alchemy: the phases, from the start of a fit on: ``phase``, ``history``, ``redundant``.

    Raises:
        AlchemyError: at once where a phase waits for a plateau and there is no monitor; when the fit starts beside a
            ``GammaPenaltyCallback``, whose penalty would count twice; when the fit starts for
            settings out of range; at an epoch's end for a metric that was not logged, or a modification that is
            refused.
        ModelError: when the fit starts, for a module without gammas or without ``example_input_array``.
        OptimizerError: when the fit starts, for a module with several optimizers.

    Example:
        >>> callback = AlchemyCallback(monitor="val_loss", threshold=0.05)
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False)
    """

    def __init__(
        self,
        *,
        monitor: str | None = None,
        threshold: float | None = None,
        quantile: float | None = None,
        whole_layers: bool = False,
        identification: Convergence | None = USUAL,
        modification: bool = True,
        maximisation: Convergence | None = None,
        alpha: float = 0.1,
        beta: float = 1.0,
        weight: float = 1e-4,
        absolute: bool = False,
        biases: bool = False,
        head: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        check_rules(identification=identification, maximisation=maximisation)
        if monitor is None and any(rule and rule.patience for rule in (identification, maximisation)):
            raise AlchemyError(
                "a phase with a patience ends on a plateau of a metric: give AlchemyCallback(monitor=...) the name of "
                "one that the module logs, or the phases budgets, as identification=Convergence(limit=20)"
            )
        self.monitor = monitor
        self.settings: dict[str, Any] = {
            "threshold": threshold,
            "quantile": quantile,
            "whole_layers": whole_layers,
            "identification": identification,
            "modification": modification,
            "maximisation": maximisation,
            "biases": biases,
            "head": head,
            "seed": seed,
        }
        self.penalty: dict[str, Any] = {"alpha": alpha, "beta": beta, "weight": weight, "absolute": absolute}
        self.alchemy: Alchemy | None = None
        self._state: dict[str, Any] = {}
        self._validated = False

    @property
    def maximises(self) -> bool:
        """Whether the maximisation has begun: from then on the rates of all layers can be learned."""
        return self.state_dict().get("phase") in ("maximisation", "finished")

    def state_dict(self) -> dict[str, Any]:
        """Phase, progress and what started afresh."""
        return self.alchemy.state_dict() if self.alchemy else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the fit starts."""
        self._state, self.alchemy = state_dict, None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the phases, and freeze: the optimizer exists, and its saved state comes after this."""
        if any(isinstance(callback, GammaPenaltyCallback) for callback in callbacks_of(trainer)):
            raise AlchemyError(
                "AlchemyCallback brings the penalty of its last phase, and a GammaPenaltyCallback beside it would add "
                "it again; leave that out, and give AlchemyCallback its weight, alpha and beta"
            )
        if len(trainer.optimizers) != 1:
            raise OptimizerError(
                f"AlchemyCallback trains a network with one optimizer, and configure_optimizers of "
                f"{type(pl_module).__name__} gave {len(trainer.optimizers)}; use layertune.Alchemy in a loop of yours"
            )
        state = self.state_dict()
        inputs = example_inputs(pl_module, "train it in a loop of your own with layertune.Alchemy")
        gammas(pl_module)  # one error, and no warning of the penalty's
        penalty = GammaPenalty(pl_module, **self.penalty)
        self.alchemy = Alchemy(pl_module, trainer.optimizers[0], *inputs, penalty=penalty, **self.settings)
        if state:
            self.alchemy.load_state_dict(state)
        self._validated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Do a modification that waits: there was no identification, or it was refused."""
        if self.alchemy is not None and self.alchemy.phase == "modification":
            self.alchemy.modify()
            self._tell()

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        """Add the penalty's gradient: that of the loss is reduced, unscaled and not clipped yet."""
        if self.alchemy is not None:
            self.alchemy.add_gradient(scale=grad_scale(trainer, optimizer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Know that the metric is new."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """End an epoch, before checkpoints are saved."""
        validates = self.monitor is not None and sum(trainer.num_val_batches) > 0
        if self.alchemy is None or (validates and not self._validated):
            return
        self._validated = False
        if self.alchemy.update(self._metric(trainer)):
            self._tell()
            if self.alchemy.phase == "finished":
                trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Tell of a fit in which the norms alone were trained."""
        if self.alchemy is not None and self.alchemy.phase == "identification":
            logger.warning(
                "The fit ended within Network Alchemy's identification: the norms alone were trained. Train for more "
                "epochs, or go on with ckpt_path."
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Unfreeze."""
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Unfreeze."""
        if stage == "fit":
            self._release()

    def _metric(self, trainer: pl.Trainer) -> float | None:
        """The first process's value, so that all processes change phase together."""
        if self.monitor is None:
            return None
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise AlchemyError(
                f"AlchemyCallback(monitor={self.monitor!r}) names no metric that was logged; logged by now: {known}. "
                "Log it in validation_step or training_step with self.log(name, value, on_epoch=True)"
            )
        return float(trainer.strategy.broadcast(float(value)))

    def _tell(self) -> None:
        if self.alchemy is not None:
            redundant = self.alchemy.redundant
            afresh = f"; {redundant.count} of {redundant.total} kernels started afresh" if redundant else ""
            logger.info("Network Alchemy: %s%s", self.alchemy.phase, afresh)

    def _release(self) -> None:
        if self.alchemy is not None:
            self.alchemy.detach()

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: the settings and the state, not what is attached."""
        return {**vars(self), "alchemy": None, "_state": self.state_dict()}


def still_freezes(trainer: pl.Trainer) -> bool:
    """Whether Network Alchemy still freezes layers, or is about to give kernels a fresh start."""
    return any(isinstance(callback, AlchemyCallback) and not callback.maximises for callback in callbacks_of(trainer))

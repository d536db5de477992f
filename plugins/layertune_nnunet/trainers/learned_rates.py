"""Learned learning rates in nnU-Net, with or without meta batches of their own; their lines in the log, their figure.

The figure itself is the one that all hosts share, ``layertune.hosts.report.write_figure``.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from layertune import LRProfile, MetaLR, OptimizerError
from layertune.hosts.report import FIGURE, write_figure, write_report
from layertune.metalr.settings import RULE_NAMES, MetaLRSettings
from layertune_nnunet.trainers.base import LayeredMixin
from layertune_nnunet.trainers.names import NUMBER, Suffix, number, written_in_name

__all__ = ["LearnedRatesMixin", "MetaLRStreamingMixin"]


class LearnedRatesMixin(LayeredMixin):
    """Attach ``layertune.MetaLR`` to the trainer's own optimizer.

    The trainer's schedule stays as it is. What is learned is one factor per layer, which is kept in the optimizer's
    state and so in each checkpoint. nnU-Net's log and ``progress.png`` show the rate of the schedule. The rates of the
    layers are in one line of the log per epoch, in ``learned_rates.png``, and in Weights & Biases where nnU-Net logs
    to it.

    Where an attribute is None, the default of ``MetaLR`` for long trainings applies; see ``MetaLR`` for what the
    settings do.

    Attributes:
        hyper_lr: Step size of the learning rates. The rule ``"additive"`` needs one. Suffix ``_hlr0p05``.
        rule: How a rate follows its meta gradient. The suffix is the rule's name.
        every: MetaLR learns at each ``every``-th step. Suffix ``_every5``.
        min_lr: The smallest learned rate. Suffix ``_min1em6``.
        max_lr: The largest learned rate. Suffix ``_max0p1``.
        max_change: The largest factor, up or down, of one adaptation.
        streaming: Whether the gradient of the next training batch is the meta gradient.
        metalr: The attached ``MetaLR``. None while a phase freezes layers, and after the training.
    """

    hyper_lr: ClassVar[float | None] = None
    rule: ClassVar[str | None] = None
    every: ClassVar[int | None] = None
    min_lr: ClassVar[float | None] = None
    max_lr: ClassVar[float | None] = None
    max_change: ClassVar[float | None] = None
    streaming: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("hyper_lr", f"hlr{NUMBER}", number, "hlr0p05", "step size of the learning rates 0.05"),
        Suffix("rule", "|".join(RULE_NAMES), str, "cosine", f"rule, one of {', '.join(RULE_NAMES)}"),
        Suffix("every", r"every([1-9]\d*)", int, "every5", "learn at each 5th step"),
        Suffix("min_lr", f"min{NUMBER}", number, "min1em6", "no learned rate below 0.000001"),
        Suffix("max_lr", f"max{NUMBER}", number, "max0p1", "no learned rate above 0.1"),
    )

    # Class attributes, because nnU-Net reads the arguments of `__init__` off its signature.
    metalr: MetaLR | None = None
    _last_profile: LRProfile | None = None

    @classmethod
    def check_settings(cls) -> None:
        """Refuse settings that MetaLR does not take.

        Raises:
            OptimizerError: MetaLR's own error, with the suffixes that set the values it names.
        """
        super().check_settings()
        try:
            _settings_of(cls)
        except OptimizerError as error:
            raise OptimizerError(written_in_name(str(error), cls)) from error

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Make the trainer's own optimizer and attach to it. Some trainers make another one later."""
        optimizer, scheduler = super().configure_optimizers(*args, **kwargs)
        self._attach(optimizer)
        return optimizer, scheduler

    def get_dataloaders(self) -> Any:
        """Attach if a continued training is in a phase in which all layers train."""
        self._attach(self.optimizer)
        return super().get_dataloaders()

    def on_epoch_start(self) -> None:
        """Attach if such a phase begins with this epoch."""
        super().on_epoch_start()
        self._attach(self.optimizer)

    def _attach(self, optimizer: Any) -> None:
        if self.trains_all and (self.metalr is None or self.metalr.optimizer is not optimizer):
            # Layers by their parameters: the number of groups stays the trainer's, and its schedule owns `lr`.
            layers = self.layers.parameters_of(self.network)
            self.metalr = MetaLR(optimizer, settings=_settings_of(self), layers=layers)

    @property
    def profile(self) -> LRProfile | None:
        """The rates learned so far, also after the training. None before anything was learned."""
        if self.metalr is None or not self.metalr.history:
            return self._last_profile
        depth_of = {layer.name: layer.depth for layer in self.layers}
        profile = self.metalr.profile()
        return replace(profile, depths=tuple(depth_of[name] for name in profile.layers))

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the rates at the end of the epoch."""
        super().on_train_epoch_end(train_outputs)
        if self.metalr is not None:
            lrs = self.metalr.lrs
            rates = ", ".join(f"{layer} {rate:.3g}" for layer, rate in lrs.items())
            self.print_to_log_file(f"Learning rates by layer: {rates}")
            for logger in self.logger.loggers:
                for layer, rate in lrs.items():
                    logger.log(f"lr/{layer}", rate, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Draw the rates beside nnU-Net's own figure."""
        super().on_epoch_end()
        self.plot_learned_rates()

    def plot_learned_rates(self) -> None:
        """Write the figure of the rates learned so far."""
        if self.local_rank == 0 and (profile := self.profile) is not None:
            write_figure(profile, Path(self.output_folder) / FIGURE, warn=self.warn_once)

    def report_learned_rates(self) -> None:
        """Write profile and figure of the rates that were learned in the whole training."""
        if self.local_rank == 0 and (profile := self.profile) is not None:
            write_report(profile, self.output_folder, warn=self.warn_once)

    def on_train_end(self) -> None:
        """Write the report and detach from the optimizer."""
        super().on_train_end()
        self.report_learned_rates()
        self._last_profile = self.profile
        if self.metalr is not None:
            self.metalr.detach()
            self.metalr = None


class MetaLRStreamingMixin(LearnedRatesMixin):
    """Learn the rates at the cost of plain training: the next training batch is the meta batch."""

    streaming: ClassVar[bool | None] = True


def _settings_of(trainer: LearnedRatesMixin | type[LearnedRatesMixin]) -> MetaLRSettings:
    """Return MetaLR's settings, with its defaults for long trainings where the trainer gives no value."""
    names: Sequence[str] = [field.name for field in fields(MetaLRSettings)]
    return MetaLRSettings.given(preset="long_training", **{name: getattr(trainer, name, None) for name in names})

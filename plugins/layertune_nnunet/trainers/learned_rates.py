"""Trainers that learn one learning rate a layer: what streaming and meta batches share."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from layertune import LRProfile, MetaLR, ProfileError
from layertune_nnunet.trainers.base import LayeredMixin
from layertune_nnunet.trainers.names import NUMBER, Suffix, number
from layertune_nnunet.trainers.report import PROFILE, draw, line

__all__ = ["LearnedRatesMixin", "MetaLRStreamingMixin"]


class LearnedRatesMixin(LayeredMixin):
    """MetaLR on the trainer's own optimizer; see ``layertune.MetaLR`` for the method and the attributes.

    The schedule stays the trainer's: what is learned is one factor a layer, kept in the optimizer's state and so in
    each checkpoint. Log and ``progress.png`` show the schedule's rate; a line an epoch, ``learned_rates.png`` and
    Weights & Biases, where nnU-Net logs to it, show the layers'.

    Attributes:
        hyper_lr: eta, the step size of the learning rates; suffix ``_hlr0p05``.
        rule: ``"proportional"``, ``"additive"`` (the paper's eq. 3), ``"cosine"`` or ``"joint"``; the suffixes are
            called alike.
        every: learn at each k-th step; suffix ``_every5``.
        min_lr: floor of the learned rates; suffix ``_min1em6``.
        max_lr: ceiling, if any; suffix ``_max0p1``.
        max_change: largest factor, up or down, of one adaptation.
        streaming: whether the next training batch is the meta batch.
        metalr: what is attached, while the trainer trains all layers.
        profile: what was learned over time; ``None`` before anything was.
    """

    hyper_lr: ClassVar[float] = 0.1
    rule: ClassVar[str] = "proportional"
    every: ClassVar[int] = 1
    min_lr: ClassVar[float] = 1e-6
    max_lr: ClassVar[float | None] = None
    max_change: ClassVar[float] = 2.0
    streaming: ClassVar[bool] = False
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("hyper_lr", f"hlr{NUMBER}", number, "hlr0p05", "step size of the learning rates 0.05"),
        Suffix("rule", "proportional|additive|cosine|joint", str, "cosine", "rule (or: proportional, additive, joint)"),
        Suffix("every", r"every([1-9]\d*)", int, "every5", "learn at each 5th step"),
        Suffix("min_lr", f"min{NUMBER}", number, "min1em6", "no learned rate below 0.000001"),
        Suffix("max_lr", f"max{NUMBER}", number, "max0p1", "no learned rate above 0.1"),
    )

    # Class attributes, because nnU-Net reads the arguments of `__init__` off its signature.
    metalr: MetaLR | None = None
    _profile: LRProfile | None = None

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Attach to the optimizer, whichever the trainer makes; some are asked again in the course of a training."""
        optimizer, scheduler = super().configure_optimizers(*args, **kwargs)
        self._attach(optimizer)
        return optimizer, scheduler

    def get_dataloaders(self) -> Any:
        """Attach now if the run is continued in a phase in which all layers train."""
        self._attach(self.optimizer)
        return super().get_dataloaders()

    def on_epoch_start(self) -> None:
        """Attach now if that phase begins."""
        super().on_epoch_start()
        self._attach(self.optimizer)

    def _attach(self, optimizer: Any) -> None:
        if not self.trains_all or (self.metalr is not None and self.metalr.optimizer is optimizer):
            return
        self.metalr = MetaLR(
            optimizer,
            hyper_lr=self.hyper_lr,
            rule=self.rule,
            min_lr=self.min_lr,
            max_lr=self.max_lr,
            max_change=self.max_change,
            every=self.every,
            streaming=self.streaming,
            # By parameters: the number of groups stays the trainer's, and `lr` the schedule's alone.
            layers=self.layers.parameters_of(self.network),
        )

    @property
    def profile(self) -> LRProfile | None:
        """What was learned over time, now or by the end of the training."""
        if self.metalr is None or not self.metalr.history:
            return self._profile
        depth_of = {layer.name: layer.depth for layer in self.layers}
        profile = self.metalr.profile()
        return replace(profile, depths=tuple(depth_of[name] for name in profile.layers))

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the rates that the epoch ended with."""
        super().on_train_epoch_end(train_outputs)
        if self.metalr is not None:
            lrs = self.metalr.lrs
            self.print_to_log_file(line(lrs))
            for logger in self.logger.loggers:
                for layer, rate in lrs.items():
                    logger.log(f"lr/{layer}", rate, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Draw the rates beside nnU-Net's own figure."""
        super().on_epoch_end()
        if self.local_rank == 0:
            self.plot_learned_rates()

    def plot_learned_rates(self) -> None:
        """Draw the rates so far."""
        profile = self.profile
        if profile is not None:
            try:
                draw(profile, Path(self.output_folder))
            except ProfileError as error:  # every rate 0, as with an initial learning rate of 0
                self.print_to_log_file(f"no figure of the learned rates: {error}")

    def on_train_end(self) -> None:
        """Keep what was learned, and leave the optimizer as it was."""
        super().on_train_end()
        self._profile = self.profile
        if self.local_rank == 0 and self._profile is not None:
            self._profile.save(Path(self.output_folder) / PROFILE)
        if self.metalr is not None:
            self.metalr.detach()
            self.metalr = None


class MetaLRStreamingMixin(LearnedRatesMixin):
    """MetaLR at the cost of plain training: the next training batch is the meta batch."""

    streaming: ClassVar[bool] = True

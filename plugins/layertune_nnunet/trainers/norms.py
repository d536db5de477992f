"""Trainers about the gammas of norms: norm-only training, and the penalty on gammas."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from layertune import AlchemyError, gammas, norm_only
from layertune.hosts.gamma_penalty import PenaltyOptions, PenaltySession, PenaltySettings
from layertune.policies.freezing import Frozen
from layertune_nnunet.trainers.base import LayeredMixin
from layertune_nnunet.trainers.frozen import FrozenMixin
from layertune_nnunet.trainers.gamma_report import draw_gammas, gamma_line
from layertune_nnunet.trainers.names import NUMBER, Suffix, number, written_in_name

__all__ = ["HEAD_AND_BIASES", "BNScaleMixin", "GammasMixin", "NormOnlyMixin", "penalty_options"]

HEAD_AND_BIASES = (
    Suffix("head", "head", bool, "head", "train the segmentation layers together with the norms"),
    Suffix("biases", "biases", bool, "biases", "train the biases of convolutions together with the norms"),
)
"""The suffixes for what trains while all but the norms is frozen."""


class GammasMixin(LayeredMixin):
    """Log and draw the gammas after each epoch, and refuse a network without gammas."""

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Check that the network has gammas, then make the trainer's own optimizer.

        Raises:
            ModelError: The network has no gamma.
        """
        gammas(self.network)
        return super().configure_optimizers(*args, **kwargs)

    def on_epoch_end(self) -> None:
        """Write a line into the log, and a figure beside nnU-Net's own."""
        super().on_epoch_end()
        self.print_to_log_file(self.gamma_report())
        if self.local_rank == 0:
            self.plot_gammas()

    def gamma_report(self) -> str:
        """Return the line for the log."""
        return f"Norms: {gamma_line(gammas(self.network))}"

    def plot_gammas(self) -> None:
        """Draw the present gammas."""
        self._draw({"now": gammas(self.network)})

    def _draw(self, named: Mapping[str, Mapping[str, Tensor]], threshold: float | None = None) -> None:
        try:
            draw_gammas(named, threshold, Path(self.output_folder))
        except (AlchemyError, OSError) as error:  # an AlchemyError where gammas are not finite, after a divergence
            self.warn_once(f"no figure of the gammas was drawn: {error}")


class NormOnlyMixin(GammasMixin, FrozenMixin):
    """Train the parameters of the norms only (Network Alchemy, sec. 3.2.1).

    Attributes:
        head: Whether the segmentation layers train too. nnU-Net never loads them from a checkpoint. Suffix ``_head``.
        biases: Whether the biases of convolutions train too. Suffix ``_biases``.
    """

    head: ClassVar[bool] = False
    biases: ClassVar[bool] = False
    suffixes: ClassVar[tuple[Suffix, ...]] = HEAD_AND_BIASES

    def freeze(self) -> Frozen:
        """Freeze all but the norms, and what the attributes name."""
        head = self.layers.head.parameters if self.head else ()
        return norm_only(self.network, biases=self.biases, head=head)


class BNScaleMixin(GammasMixin):
    """Train with a penalty that makes the gammas of all norms large and equal (Network Alchemy, sec. 3.2.1).

    The penalty is part of the training's loss. So mixed precision scales it, gradients are clipped with it, and the
    loss in the log contains it. The validation uses nnU-Net's own loss.

    Where an attribute is None, the default of ``GammaPenalty`` applies.

    Attributes:
        lam: The weight lambda of the penalty. Suffix ``_lam1em4``.
        alpha: The weight of the gammas' mean. Suffix ``_alpha0p1``.
        beta: The weight of their standard deviation. Suffix ``_beta1``.
        absolute: Whether the penalty reads |gamma| in place of gamma. Suffix ``_absolute``.
    """

    lam: ClassVar[float | None] = None
    alpha: ClassVar[float | None] = None
    beta: ClassVar[float | None] = None
    absolute: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("lam", f"lam{NUMBER}", number, "lam1em4", "weight of the penalty on gammas 0.0001", setting="weight"),
        Suffix("alpha", f"alpha{NUMBER}", number, "alpha0p1", "weight of the gammas' mean in the penalty 0.1"),
        Suffix("beta", f"beta{NUMBER}", number, "beta1", "weight of their standard deviation in the penalty 1"),
        Suffix("absolute", "absolute", bool, "absolute", "the penalty reads |gamma|"),
    )

    _penalty_session: PenaltySession | None = None

    @classmethod
    def check_settings(cls) -> None:
        """Refuse settings of Network Alchemy that cannot be used.

        Raises:
            AlchemyError: The core's own error, with the suffixes that set the values it names.
        """
        super().check_settings()
        try:
            cls._settings_of(cls)
        except AlchemyError as error:
            raise AlchemyError(written_in_name(str(error), cls)) from error

    @staticmethod
    def _settings_of(trainer: Any) -> PenaltySettings:
        """Return the settings that a trainer or its class gives, with the core's defaults for the others."""
        return PenaltySettings.given(**penalty_options(trainer))

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Make the trainer's own optimizer, and begin to add the penalty. Some trainers make another one later."""
        optimizer, scheduler = super().configure_optimizers(*args, **kwargs)
        self._begin(optimizer)
        return optimizer, scheduler

    def _begin(self, optimizer: Any) -> None:
        self._penalty_session = self._penalty_session or PenaltySession(
            self._settings_of(self), owner=type(self).__name__
        )
        self._penalty_session.begin(self.network, [optimizer])

    def penalty(self) -> Tensor:
        """Return the term that is added to the training's loss."""
        assert self._penalty_session is not None
        assert self._penalty_session.penalty is not None, "it begins with the optimizer"
        return self._penalty_session.penalty()

    def train_step(self, batch: dict[str, Any]) -> Any:
        """Take the trainer's own step, with the penalty in its loss."""
        # The loss is replaced for this step only, because the validation uses the same loss, and so do other trainers.
        plain: Callable[..., Tensor] = self.loss
        self.loss: Callable[..., Tensor] = lambda *args: plain(*args) + self.penalty()
        try:
            return super().train_step(batch)
        finally:
            self.loss = plain

    def on_train_end(self) -> None:
        """Stop adding the penalty."""
        super().on_train_end()
        if self._penalty_session is not None:
            self._penalty_session.end()


def penalty_options(trainer: Any) -> PenaltyOptions:
    """Return the settings of the penalty that a trainer or its class gives, by the core's names."""
    return {"weight": trainer.lam, "alpha": trainer.alpha, "beta": trainer.beta, "absolute": trainer.absolute}

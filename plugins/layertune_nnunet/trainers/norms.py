"""Trainers about the gammas of norms: norms trained alone, and gammas kept large and alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from layertune import AlchemyError, GammaPenalty, gammas, norm_only
from layertune.policies.freezing import Frozen
from layertune_nnunet.trainers.base import LayeredMixin
from layertune_nnunet.trainers.frozen import FrozenMixin
from layertune_nnunet.trainers.names import NUMBER, Suffix, number
from layertune_nnunet.trainers.report import draw_gammas, gamma_line

__all__ = ["BNScaleMixin", "GammasMixin", "NormOnlyMixin"]

PARTS = (
    Suffix("head", "head", bool, "head", "train the segmentation layers together with the norms"),
    Suffix("biases", "biases", bool, "biases", "train the biases of convolutions together with the norms"),
)
"""What may train while all but the norms is frozen."""


class GammasMixin(LayeredMixin):
    """Log and draw the gammas after each epoch; refuse a network that has none."""

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse a network without gammas, then make the trainer's own optimizer."""
        gammas(self.network)
        return super().configure_optimizers(*args, **kwargs)

    def on_epoch_end(self) -> None:
        """A line in the log, and a figure beside nnU-Net's own."""
        super().on_epoch_end()
        self.print_to_log_file(self.gamma_report())
        if self.local_rank == 0:
            self.plot_gammas()

    def gamma_report(self) -> str:
        """The line in the log."""
        return f"Norms: {gamma_line(gammas(self.network))}"

    def plot_gammas(self) -> None:
        """Draw the gammas."""
        self._draw({"now": gammas(self.network)})

    def _draw(self, named: Mapping[str, Mapping[str, Tensor]], threshold: float | None = None) -> None:
        try:
            draw_gammas(named, threshold, Path(self.output_folder))
        except AlchemyError as error:  # not finite, as in a training that diverged
            self.print_to_log_file(f"no figure of the gammas: {error}")


class NormOnlyMixin(GammasMixin, FrozenMixin):
    """Train the norms' own parameters alone (Network Alchemy, sec. 3.2.1).

    Attributes:
        head: train the segmentation layers too, which nnU-Net never takes from a checkpoint; suffix ``_head``.
        biases: train the biases of convolutions too; suffix ``_biases``.
    """

    head: ClassVar[bool] = False
    biases: ClassVar[bool] = False
    suffixes: ClassVar[tuple[Suffix, ...]] = PARTS

    def freeze(self) -> Frozen:
        """Freeze all but the norms."""
        head = self.layers.head.parameters if self.head else ()
        return norm_only(self.network, biases=self.biases, head=head)


class BNScaleMixin(GammasMixin):
    """Train with a penalty that asks the gammas of all norms to be large and alike (Network Alchemy, sec. 3.2.1).

    It is part of the training's loss, and so of its scaling under mixed precision, of clipped gradients and of the
    loss in the log; the validation's loss is nnU-Net's own.

    Attributes:
        lam: lambda, the weight of the penalty; suffix ``_lam1em4``.
        alpha: weight of the gammas' mean; suffix ``_alpha0p1``.
        beta: weight of their standard deviation; suffix ``_beta1``.
        absolute: read |gamma|; suffix ``_absolute``.
    """

    lam: ClassVar[float] = 1e-4
    alpha: ClassVar[float] = 0.1
    beta: ClassVar[float] = 1.0
    absolute: ClassVar[bool] = False
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("lam", f"lam{NUMBER}", number, "lam1em4", "weight of the penalty on gammas 0.0001"),
        Suffix("alpha", f"alpha{NUMBER}", number, "alpha0p1", "weight of the gammas' mean in it 0.1"),
        Suffix("beta", f"beta{NUMBER}", number, "beta1", "weight of their standard deviation in it 1"),
        Suffix("absolute", "absolute", bool, "absolute", "the penalty reads |gamma|"),
    )

    gamma_penalty: GammaPenalty | None = None

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Find the gammas, then make the trainer's own optimizer."""
        made = super().configure_optimizers(*args, **kwargs)
        if self.gamma_penalty is None:
            self.gamma_penalty = GammaPenalty(self.network, self.alpha, self.beta, self.lam, absolute=self.absolute)
        return made

    def penalty(self) -> Tensor:
        """What the training's loss has on top."""
        assert self.gamma_penalty is not None
        return self.gamma_penalty()

    def train_step(self, batch: dict[str, Any]) -> Any:
        """The trainer's own step, with the penalty in its loss."""
        # Here alone, and not in `_build_loss`: validation has the same loss, and others reach into it.
        plain: Callable[..., Tensor] = self.loss
        self.loss: Callable[..., Tensor] = lambda *given: plain(*given) + self.penalty()
        try:
            return super().train_step(batch)
        finally:
            self.loss = plain

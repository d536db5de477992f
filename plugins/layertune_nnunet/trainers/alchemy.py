"""Network Alchemy: its three phases inside one run of nnU-Net."""

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from layertune import Alchemy, AlchemyError, Convergence, gammas
from layertune_nnunet.trainers.names import NUMBER, Suffix, number
from layertune_nnunet.trainers.norms import PARTS, BNScaleMixin
from layertune_nnunet.trainers.report import gamma_line

__all__ = ["AlchemyMixin"]

STATE = "alchemy"
"""The key of nnU-Net's first parameter group that holds the state: its checkpoints take that along."""


class AlchemyMixin(BNScaleMixin):
    """Identify redundant kernels by their gammas, let them start afresh, then train all; see ``layertune.Alchemy``.

    The schedule of the learning rate is the trainer's, one over all phases. An epoch counts when the next one begins:
    what was validated is what is saved, and new kernels come after that.

    Attributes:
        identification: epochs with all but the norms frozen; suffix ``_id50``.
        patience: end them earlier, after so many without a better validation loss; suffix ``_patience10``.
        threshold: a kernel whose |gamma| lies below it is redundant, 0.05 if no quantile is given; suffix
            ``_thr0p05``.
        quantile: instead, the share of kernels that start afresh; suffix ``_q0p1``.
        whole_layers: accept a threshold that takes all kernels of a layer; suffix ``_whole``.
        head: train the segmentation layers in the identification too; suffix ``_head``.
        biases: train the biases of convolutions in it too; suffix ``_biases``.
        alchemy: the phases, once the trainer is initialized. A MetaLR mixin before this one learns rates in the last.
    """

    identification: ClassVar[int] = 50
    patience: ClassVar[int | None] = None
    threshold: ClassVar[float | None] = None
    quantile: ClassVar[float | None] = None
    whole_layers: ClassVar[bool] = False
    head: ClassVar[bool] = False
    biases: ClassVar[bool] = False
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("identification", r"id([1-9]\d*)", int, "id50", "identify redundant kernels for 50 epochs"),
        Suffix("patience", r"patience([1-9]\d*)", int, "patience10", "or until 10 epochs bring no better loss"),
        Suffix("threshold", f"thr{NUMBER}", number, "thr0p05", "redundant is |gamma| < 0.05"),
        Suffix("quantile", f"q{NUMBER}", number, "q0p1", "or: redundant are a tenth of all kernels"),
        Suffix("whole_layers", "whole", bool, "whole", "let all kernels of a layer start afresh"),
        *PARTS,
    )

    alchemy: Alchemy | None = None
    network: Any

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """Make the trainer's own optimizer, and begin with the identification.

        Raises:
            AlchemyError: settings that do not fit.
        """
        optimizer, scheduler = super().configure_optimizers(*args, **kwargs)
        if self.alchemy is None:
            self.alchemy = Alchemy(
                self.network,
                optimizer,
                self.example(),
                threshold=self.threshold,
                quantile=self.quantile,
                whole_layers=self.whole_layers,
                identification=Convergence(patience=self.patience, limit=self.identification),
                penalty=self.gamma_penalty,
                biases=self.biases,
                head=self.layers.head.parameters if self.head else (),
            )
        self.alchemy.optimizer = optimizer  # some trainers make another in the course of a training
        return optimizer, scheduler

    def penalty(self) -> Tensor:
        """What the training's loss has on top in this phase."""
        return self._phases.penalty()

    def on_train_start(self) -> None:
        """Refuse a training that would end before the identification does."""
        if self.identification >= self.num_epochs:
            raise AlchemyError(
                f"an identification of {self.identification} epochs leaves none of the {self.num_epochs} for the "
                "rest; say fewer in the name, as in -tr nnUNetTrainerAlchemy_id5_20epochs, or by `identification` in a "
                "class of your own"
            )
        super().on_train_start()

    def on_epoch_start(self) -> None:
        """Count the epochs that are done, once each, whether they were trained in this process or before ``--c``.

        Raises:
            AlchemyError: the modification is refused. ``checkpoint_latest.pth`` then holds what was identified.
        """
        phases = self._phases
        losses = self.logger.get_value("val_losses", step=None)
        try:
            while len(phases.history) < self.current_epoch:
                if phases.update(float(losses[len(phases.history)])):
                    self._begin_maximisation()
            if phases.phase == "modification":  # it was refused in the run that is continued
                phases.modify()
                self._begin_maximisation()
        except AlchemyError as error:
            raise AlchemyError(self._kept(error)) from error
        super().on_epoch_start()

    @property
    def trains_all(self) -> bool:
        """Whether the maximisation has begun."""
        return self.alchemy is not None and self.alchemy.phase == "maximisation"

    def gamma_report(self) -> str:
        """The line in the log: the phase, and how many kernels are redundant."""
        return f"Network Alchemy, {self._phases.phase}: {gamma_line(gammas(self.network), self._limit)}"

    def plot_gammas(self) -> None:
        """Draw the gammas, beside those by which kernels were judged."""
        identified = self._phases.identified
        before = {} if identified is None else {"identified": identified}
        self._draw({**before, "now": gammas(self.network)}, self._limit)

    def save_checkpoint(self, filename: str) -> None:
        """Save with the phase."""
        self.optimizer.param_groups[0][STATE] = self._phases.state_dict()
        super().save_checkpoint(filename)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Go on in the phase in which the checkpoint was saved.

        Raises:
            AlchemyError: it was saved by another trainer.
        """
        super().load_checkpoint(filename_or_checkpoint)
        state = self.optimizer.param_groups[0].get(STATE)
        if state is None:
            raise AlchemyError(
                f"the checkpoint {filename_or_checkpoint} has no phase of Network Alchemy, so another trainer "
                "saved it; to start from its weights, give it to -pretrained_weights"
            )
        self._phases.load_state_dict(state)
        self._wrap_again()

    def on_train_end(self) -> None:
        """Unfreeze what may still be frozen."""
        super().on_train_end()
        self._phases.detach()

    def _wrap_again(self) -> None:
        """Let DDP look again: it syncs the gradients of what was not frozen when it wrapped the network."""
        wrapped = self.network
        if isinstance(wrapped, DistributedDataParallel):
            self.network = DistributedDataParallel(
                wrapped.module,
                device_ids=wrapped.device_ids,
                find_unused_parameters=wrapped.find_unused_parameters,
            )

    @property
    def _phases(self) -> Alchemy:
        assert self.alchemy is not None, "made together with the optimizer"
        return self.alchemy

    @property
    def _limit(self) -> float | None:
        redundant = self._phases.redundant
        return self._phases.threshold if redundant is None else redundant.threshold

    def _kept(self, error: AlchemyError) -> str:
        """Save what was identified, and say how to go on from there."""
        file = Path(self.output_folder) / "checkpoint_latest.pth"
        self.current_epoch -= 1  # nnU-Net saves within an epoch, and counts that one as done
        self.save_checkpoint(str(file))
        self.current_epoch += 1
        return (
            f"{error}. In nnU-Net this is a part of {type(self).__name__}'s name: a lower threshold as in _thr0p01, a "
            f"share of all kernels as in _q0p1, or _whole. What was identified is in {file}; to go on from there, "
            f"rename the folder {Path(self.output_folder_base).name} for the new name, and continue with --c"
        )

    def _begin_maximisation(self) -> None:
        self._wrap_again()
        redundant = self._phases.redundant
        assert redundant is not None
        self.print_to_log_file(
            f"Network Alchemy: {redundant.count} of {redundant.total} kernels, |gamma| < {redundant.threshold:.3g}, "
            f"start afresh, and all layers train from here on; {len(redundant.unpaired)} norms could not be judged."
        )

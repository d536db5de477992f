"""Network Alchemy: its three phases in one training of nnU-Net."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from layertune import Alchemy, AlchemyError, gammas
from layertune.hosts.alchemy_session import AlchemySession
from layertune.hosts.alchemy_settings import IDENTIFICATION, AlchemySettings
from layertune_nnunet.trainers.gamma_report import gamma_line
from layertune_nnunet.trainers.names import NUMBER, Suffix, number
from layertune_nnunet.trainers.norms import HEAD_AND_BIASES, BNScaleMixin, penalty_options

__all__ = ["AlchemyMixin"]

STATE = "alchemy"
"""The key of the phases in the optimizer's first parameter group, which nnU-Net's checkpoints contain."""


class AlchemyMixin(BNScaleMixin):
    """Identify redundant kernels, initialize them anew, then train all layers; see ``layertune.Alchemy``.

    The trainer's schedule of the learning rate covers all phases. An epoch counts when the next one begins. So a
    checkpoint holds the weights that were validated, and kernels are initialized anew after that.

    Where an attribute is None, the default of Network Alchemy for long trainings applies. A MetaLR mixin before this
    one learns rates in the last phase.

    Attributes:
        identification: Number of epochs with all but the norms frozen. Suffix ``_id50``.
        patience: The identification also ends after this number of epochs without a better validation loss. Suffix
            ``_patience10``.
        threshold: A kernel is redundant if its |gamma| is below this number. Suffix ``_thr0p05``.
        quantile: The share of all kernels that are redundant, in place of ``threshold``. Suffix ``_q0p1``.
        whole_layers: Whether all kernels of a layer may be redundant, which is refused otherwise. Suffix ``_whole``.
        head: Whether the segmentation layers train in the identification too. Suffix ``_head``.
        biases: Whether the biases of convolutions train in the identification too. Suffix ``_biases``.
    """

    identification: ClassVar[int | None] = None
    patience: ClassVar[int | None] = None
    threshold: ClassVar[float | None] = None
    quantile: ClassVar[float | None] = None
    whole_layers: ClassVar[bool | None] = None
    head: ClassVar[bool] = False
    biases: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("identification", r"id([1-9]\d*)", int, "id50", "identify redundant kernels for 50 epochs"),
        Suffix("patience", r"patience([1-9]\d*)", int, "patience10", "or until 10 epochs bring no better loss"),
        Suffix("threshold", f"thr{NUMBER}", number, "thr0p05", "kernels with |gamma| < 0.05 are redundant"),
        Suffix("quantile", f"q{NUMBER}", number, "q0p1", "or: a tenth of all kernels are redundant"),
        Suffix("whole_layers", "whole", bool, "whole", "all kernels of a layer may be redundant"),
        *HEAD_AND_BIASES,
    )

    network: Any
    _session: AlchemySession | None = None

    @property
    def alchemy(self) -> Alchemy | None:
        """The phases, once the trainer is initialized."""
        return None if self._session is None else self._session.alchemy

    @staticmethod
    def _settings_of(trainer: Any) -> AlchemySettings:
        given = {"patience": trainer.patience, "limit": trainer.identification}
        identification = {name: value for name, value in given.items() if value is not None}
        return AlchemySettings.given(
            identification=replace(IDENTIFICATION["long_training"], **identification),
            threshold=trainer.threshold,
            quantile=trainer.quantile,
            whole_layers=trainer.whole_layers,
            biases=trainer.biases,
            **penalty_options(trainer),
        )

    def _begin(self, optimizer: Any) -> None:
        if self._session is None:
            head = self.layers.head.parameters if self.head else ()
            settings = replace(self._settings_of(self), head=head)
            self._session = AlchemySession(settings, owner=type(self).__name__)
        if self.alchemy is None or self.alchemy.optimizer is not optimizer:
            self._session.begin(self.network, optimizer, self.example())

    def penalty(self) -> Tensor:
        """Return the term that the present phase adds to the training's loss."""
        return self._running.penalty()

    def on_train_start(self) -> None:
        """Refuse a training that would end before the identification does.

        Raises:
            AlchemyError: The identification takes all epochs.
        """
        rule = self._settings_of(self).identification
        if rule is not None and rule.limit is not None and rule.limit >= self.num_epochs:
            raise AlchemyError(
                f"an identification of {rule.limit} epochs leaves none of the {self.num_epochs} for the other phases; "
                "shorten it in the name, as in -tr nnUNetTrainerAlchemy_id5_20epochs, or by `identification` in a "
                "class of your own"
            )
        super().on_train_start()

    def on_epoch_start(self) -> None:
        """Count each epoch that is done once, whether it was trained in this process or before ``--c``.

        Raises:
            AlchemyError: The modification is refused. ``checkpoint_latest.pth`` then holds what was identified.
        """
        losses = self.logger.get_value("val_losses", step=None)
        try:
            while len(self._phases.history) < self.current_epoch:
                if self._running.end_epoch(float(losses[len(self._phases.history)])):
                    self._begin_maximisation()
            if self._running.modify_if_due():  # a training goes on in which it was refused
                self._begin_maximisation()
        except AlchemyError as error:
            raise AlchemyError(self._keep_identified(error)) from error
        super().on_epoch_start()

    @property
    def trains_all(self) -> bool:
        """Whether the maximisation has begun."""
        return self._session is not None and self._session.maximises

    def gamma_report(self) -> str:
        """Return the line for the log, with the phase and the number of redundant kernels."""
        return f"Network Alchemy, {self._phases.phase}: {gamma_line(gammas(self.network), self._threshold)}"

    def plot_gammas(self) -> None:
        """Draw the present gammas, beside those by which kernels were judged."""
        identified = self._phases.identified
        before = {} if identified is None else {"identified": identified}
        self._draw({**before, "now": gammas(self.network)}, self._threshold)

    def save_checkpoint(self, filename: str) -> None:
        """Save the phases together with the checkpoint."""
        self.optimizer.param_groups[0][STATE] = self._running.state_dict()
        super().save_checkpoint(filename)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Go on in the phase in which the checkpoint was saved.

        Raises:
            AlchemyError: Another trainer saved the checkpoint.
        """
        super().load_checkpoint(filename_or_checkpoint)
        state = self.optimizer.param_groups[0].get(STATE)
        if state is None:
            raise AlchemyError(
                f"the checkpoint {filename_or_checkpoint} has no phase of Network Alchemy, so another trainer "
                "saved it; to start from its weights, give it to -pretrained_weights"
            )
        self._running.load_state_dict(state)
        self._wrap_again()

    def on_train_end(self) -> None:
        """Unfreeze the network and stop adding the penalty."""
        super().on_train_end()
        self._running.end()

    def _wrap_again(self) -> None:
        """Make a new DDP wrapper, because DDP averages the gradients of what was not frozen when it was made."""
        wrapped = self.network
        if isinstance(wrapped, DistributedDataParallel):
            self.network = DistributedDataParallel(
                wrapped.module,
                device_ids=wrapped.device_ids,
                find_unused_parameters=wrapped.find_unused_parameters,
            )

    @property
    def _running(self) -> AlchemySession:
        assert self._session is not None, "it begins with the optimizer"
        return self._session

    @property
    def _phases(self) -> Alchemy:
        assert self._running.alchemy is not None
        return self._running.alchemy

    @property
    def _threshold(self) -> float | None:
        redundant = self._phases.redundant
        return self._phases.threshold if redundant is None else redundant.threshold

    def _keep_identified(self, error: AlchemyError) -> str:
        """Save what was identified, and return the message that says how to go on from there."""
        file = Path(self.output_folder) / "checkpoint_latest.pth"
        self.current_epoch -= 1  # nnU-Net saves within an epoch, and counts that epoch as done
        self.save_checkpoint(str(file))
        self.current_epoch += 1
        return (
            f"{error}. In nnU-Net this is a part of {type(self).__name__}'s name: a lower threshold as in _thr0p01, a "
            f"share of all kernels as in _q0p1, or _whole. What was identified is in {file}; to go on from there, "
            f"rename the folder {Path(self.output_folder_base).name} to the new trainer's name, and continue with --c"
        )

    def _begin_maximisation(self) -> None:
        self._wrap_again()
        self.print_to_log_file(self._running.message)

"""The base of all trainers: layers from the plans, settings from the name, checkpoints written whole or not at all."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from layertune import LayerMap, ModelError, map_layers
from layertune.layers.layer import Depth, Granularity
from layertune_nnunet.errors import ResultsFolderError
from layertune_nnunet.trainers.checkpoints import portable_name, renamed, save_whole
from layertune_nnunet.trainers.names import NUMBER, Suffix, number

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as TrainerBase
else:
    TrainerBase = object

__all__ = ["LayeredMixin", "TrainerBase"]


class LayeredMixin(TrainerBase):
    """Give a trainer the layers of its network.

    Put the mixin before one of nnU-Net's trainers or before a trainer of your own.

    Attributes:
        depth: How the depth of a layer is counted, ``"I1"`` (order of execution) or ``"I2"`` (resolution level).
            Suffix ``_I2``.
        granularity: What counts as one layer: ``"block"``, ``"stage"`` or ``"module"``. Suffix ``_stage``.
        epochs: Number of epochs. None keeps the trainer's own number. Suffix ``_20epochs``.
        base_lr: Initial learning rate. None keeps the trainer's own rate. Suffix ``_lr1em3``.
    """

    depth: ClassVar[Depth] = "I1"
    granularity: ClassVar[Granularity] = "block"
    epochs: ClassVar[int | None] = None
    base_lr: ClassVar[float | None] = None
    suffixes: ClassVar[tuple[Suffix, ...]] = (
        Suffix("depth", "I1|I2", str, "I2", "depth by resolution level instead of order of execution (I1)"),
        Suffix("granularity", "block|stage|module", str, "stage", "layers are stages (or: block, module)"),
        Suffix("epochs", r"([1-9]\d*)epochs?", int, "20epochs", "train for 20 epochs"),
        Suffix("base_lr", f"lr{NUMBER}", number, "lr1em3", "initial learning rate 0.001"),
    )

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this very signature
    ) -> None:
        self.check_settings()
        # This comes before nnU-Net's own `__init__`, which accepts a folder that is not set as None, and which writes
        # its log into the results folder.
        _require_writable(_output_folder(type(self).__name__, plans, configuration, fold))
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.epochs is not None:
            self.num_epochs = self.epochs
        if self.base_lr is not None:
            self.initial_lr = self.base_lr
        self._layers: LayerMap | None = None
        self._warned: set[str] = set()

    @classmethod
    def check_settings(cls) -> None:
        """Refuse settings that cannot be used, before nnU-Net prepares anything.

        A mixin with settings of its own extends this method. The errors are those of the core.
        """

    @property
    def layers(self) -> LayerMap:
        """The layers of the network, found by one forward pass on fake tensors of the plan's patch size.

        Raises:
            ModelError: The layers of the network cannot be found.
        """
        if self._layers is None:
            example = self.example()
            try:
                self._layers = map_layers(self.network, example, granularity=self.granularity, depth=self.depth)
            except ModelError as error:
                raise ModelError(
                    f"{type(self).__name__} finds no layers in the network of configuration {self.configuration_name} "
                    f"for patches of {'x'.join(map(str, example.shape[2:]))}: {error}"
                ) from error
        return self._layers

    def example(self) -> torch.Tensor:
        """Return an uninitialized batch of two images of the plan's patch size."""
        patch = [int(side) for side in self.configuration_manager.patch_size]
        return torch.empty(2, self.num_input_channels, *patch, device=self.device)

    @property
    def trains_all(self) -> bool:
        """Whether all layers train from here on. Learning rates are learned from then on only."""
        return True

    def save_checkpoint(self, filename: str) -> None:
        """Save whole or not at all, in such a way that nnU-Net without layertune can predict with the checkpoint."""
        if self.local_rank == 0:
            with renamed(type(self), portable_name(type(self))):
                save_whole(super().save_checkpoint, Path(filename))
        else:  # nnU-Net calls this on every rank, and writes on rank 0 only
            super().save_checkpoint(filename)

    def on_train_start(self) -> None:
        """List the layers in the log.

        Raises:
            ResultsFolderError: The predictions of a cascade's previous stage are missing.
        """
        self._require_previous_stage()
        super().on_train_start()
        listed = "".join(f"\n  {layer.depth:>3}  {layer.role:<10} {layer.name}" for layer in self.layers)
        self.print_to_log_file(f"{len(self.layers)} layers, with depths by {self.depth}:{listed}")
        self._warn_of_long_warm_up()

    def warn_once(self, message: str) -> None:
        """Write a warning into the log, unless the log has it already."""
        if message not in self._warned:
            self._warned.add(message)
            self.print_to_log_file(f"WARNING: {message}")

    def _require_previous_stage(self) -> None:
        folder = self.folder_with_segs_from_previous_stage
        if self.is_cascaded and not Path(folder).is_dir():
            raise ResultsFolderError(
                f"{self.configuration_name} needs the predictions that the same trainer made with "
                f"{self.configuration_manager.previous_stage_name}, and {folder} does not exist; train that "
                f"configuration with -tr {type(self).__name__} first, all folds"
            )

    def _warn_of_long_warm_up(self) -> None:
        # nnU-Net's trainers with a warm-up set its length in `__init__`, whatever the number of epochs is.
        length = getattr(self, "warmup_duration_whole_net", 0)
        if length >= self.num_epochs:
            self.warn_once(
                f"the warm-up of {length} epochs takes all {self.num_epochs} epochs of this training, so the "
                "learning rate rises to the end; train for more epochs, or set warmup_duration_whole_net in the "
                "__init__ of a trainer of your own"
            )


def _output_folder(trainer: str, plans: dict[str, Any], configuration: str, fold: int | str) -> Path:
    """Return the folder that nnU-Net will write to; raise nnU-Net's error where a variable is not set."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    nnUNet_preprocessed.require()
    nnUNet_results.require()
    return Path(get_output_folder(plans["dataset_name"], trainer, plans["plans_name"], configuration, fold))


def _require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written; nnU-Net would fail after training, at its first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ResultsFolderError(
            f"nothing can be written into {folder} ({error}), so nothing was trained; set nnUNet_results to a folder "
            "that you may write to"
        ) from error

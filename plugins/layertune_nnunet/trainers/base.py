"""What all trainers share: layers from the plans, values from the name, checkpoints written in one piece."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from layertune import LayerMap, ModelError, map_layers
from layertune.layers.depth import Depth, Granularity
from layertune_nnunet.errors import ResultsFolderError
from layertune_nnunet.trainers.checkpoints import named, portable_name, save_in_one_piece
from layertune_nnunet.trainers.names import NUMBER, Suffix, number

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as TrainerBase
else:
    TrainerBase = object

__all__ = ["LayeredMixin", "TrainerBase"]


class LayeredMixin(TrainerBase):
    """A trainer that knows the layers of its network; put before any of nnU-Net's trainers or of your own.

    Attributes:
        depth: ``"I1"`` or ``"I2"``, how deep a layer counts; suffix ``_I2``.
        granularity: ``"block"``, ``"stage"`` or ``"module"``, what counts as one layer; suffix ``_stage``.
        epochs: number of epochs; ``None`` leaves the trainer's own; suffix ``_20epochs``.
        base_lr: initial learning rate; ``None`` leaves the trainer's own; suffix ``_lr1em3``.
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
        # Before nnU-Net, which takes a folder that is not set to be None, and writes its log into the other.
        _require_writable(_output_folder(type(self).__name__, plans, configuration, fold))
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.epochs is not None:
            self.num_epochs = self.epochs
        if self.base_lr is not None:
            self.initial_lr = self.base_lr
        self._layers: LayerMap | None = None

    @property
    def layers(self) -> LayerMap:
        """The layers of the network, from one forward on fake tensors of the plan's patch size.

        Raises:
            ModelError: the network cannot be mapped.
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
        """An input of the plan's patch size, two images, not filled."""
        patch = [int(side) for side in self.configuration_manager.patch_size]
        return torch.empty(2, self.num_input_channels, *patch, device=self.device)

    @property
    def trains_all(self) -> bool:
        """Whether no phase that freezes layers lies ahead; learned rates wait for that."""
        return True

    def save_checkpoint(self, filename: str) -> None:
        """Save as nnU-Net does, but never half a file, and so that stock nnU-Net can predict with it."""
        if self.local_rank == 0:
            with named(type(self), portable_name(type(self))):
                save_in_one_piece(super().save_checkpoint, Path(filename))
        else:  # is asked too, writes nothing, and must not meet the file that rank 0 is writing
            super().save_checkpoint(filename)

    def on_train_start(self) -> None:
        """List the layers in the log."""
        self._require_stage_before()
        super().on_train_start()
        listed = "".join(f"\n  {layer.depth:>3}  {layer.role:<10} {layer.name}" for layer in self.layers)
        self.print_to_log_file(f"{len(self.layers)} layers, with depths by {self.depth}:{listed}")

    def _require_stage_before(self) -> None:
        folder = self.folder_with_segs_from_previous_stage
        if self.is_cascaded and not Path(folder).is_dir():
            raise ResultsFolderError(
                f"{self.configuration_name} builds on predictions of {self.configuration_manager.previous_stage_name} "
                f"by the same trainer, and there are none in {folder}; train that configuration with "
                f"-tr {type(self).__name__} first, all folds"
            )


def _output_folder(trainer: str, plans: dict[str, Any], configuration: str, fold: int | str) -> Path:
    """Where nnU-Net will write; fails as nnU-Net does on a variable that is not set."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    nnUNet_preprocessed.require()
    nnUNet_results.require()
    return Path(get_output_folder(plans["dataset_name"], trainer, plans["plans_name"], configuration, fold))


def _require_writable(folder: Path) -> None:
    """Fail before training, which would find out at its first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ResultsFolderError(
            f"nothing can be written into {folder} ({error}), so nothing was trained; let nnUNet_results name a "
            "folder that you may write to"
        ) from error

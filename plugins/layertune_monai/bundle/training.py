"""The bundle's training as a Python workflow: ``python -m monai.bundle run_workflow layertune_monai.Training``."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    ConfusionMatrix,
    LrScheduleHandler,
    MeanDice,
    StatsHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
    from_engine,
)
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import nn
from torch.optim import SGD

from layertune import LayerMap, map_layers
from layertune_monai.bundle.checkpoints import BestModelSaver, RunSettings, last_checkpoint, training_state
from layertune_monai.bundle.epoch_seeds import EpochSeeds
from layertune_monai.bundle.folder import check_patch, check_paths, describe_task
from layertune_monai.bundle.polynomial_decay import PolynomialDecay
from layertune_monai.bundle.switches import METHODS_OF_SWITCH, check_switches, identification_phase
from layertune_monai.bundle.workflow import BundleWorkflow
from layertune_monai.handlers.alchemy import AlchemyHandler
from layertune_monai.handlers.gamma_penalty import GammaPenaltyHandler
from layertune_monai.handlers.metalr import MetaLRHandler
from layertune_monai.layer_groups import param_groups
from layertune_monai.weights import check_frozen_layers, load_pretrained

__all__ = ["Training"]

PAIR = ("pred", "label")


class Training(BundleWorkflow):
    """Do in Python what the bundle's ``configs/train.json`` does, as code to read and to derive from.

    Numbers, paths and transforms are read from that file, and each of them can be overridden by name, as on the command
    line of ``monai.bundle run``. The same seed gives the same weights as the configuration, bit for bit. To change a
    part, derive a class and override its ``get_<part>``; the command takes any class that can be imported.

    It takes the arguments of ``BundleWorkflow``: ``bundle_root``, and values of the configuration by name.

    Example:
        >>> import tempfile
        >>> from layertune_monai import write_bundle
        >>> workflow = Training(str(write_bundle(tempfile.mkdtemp())), method="last_layer", logging_file=False)
        >>> workflow.initialize()
        >>> [group["layer"] for group in workflow.optimizer.param_groups], workflow.metalr
        (['model.2.1.conv.unit0.conv', 'model.2.1.conv.unit0.conv'], None)
    """

    PARTS: ClassVar[Mapping[str, str]] = {
        "network": "the network on its device, with pre-trained weights",
        "layers": "the network's layers",
        "groups": "the param groups, one or two per layer",
        "optimizer": "the optimizer",
        "lr_scheduler": "the schedule of the learning rate",
        "meta_loader": "the loader of meta batches",
        "metalr": "the handler that learns rates, or None",
        "alchemy": "the handler of Network Alchemy's phases, or None",
        "penalty": "the handler of the penalty on gammas, or None",
    }

    def run(self) -> None:
        """Train, or resume a training.

        Raises:
            LayertuneError: A path, a switch or the data does not fit, or an overridden value has no effect.
        """
        check_paths(self.bundle_root, **self.values("ckpt_dir", "output_dir"))
        check_patch(self.value("patch_size"), self.value("network_def#strides"))
        check_switches(self.value("method"), **self.values(*METHODS_OF_SWITCH))
        _ = self.network  # build it before anything else draws random numbers, as the configuration does
        describe_task(self.bundle_root, self.value("task_info"))
        saver = next(handler for handler in self.val_handlers if isinstance(handler, BestModelSaver))
        settings = RunSettings(**self.values("method", "depth", "m", "n", "first", "train_head"))
        handlers = {"metalr": self.metalr, "alchemy": self.alchemy}
        state = training_state(self.trainer, self.lr_scheduler, best=saver, settings=settings, **handlers)
        CheckpointSaver(self.value("ckpt_dir"), state, save_interval=1, n_saved=1).attach(self.trainer)
        if self.value("resume"):
            last = last_checkpoint(self.value("ckpt_dir"))
            CheckpointLoader(last, state, map_location=self.device).attach(self.trainer)
        self.check_all_read()
        self.trainer.run()

    def get_network_def(self) -> nn.Module:
        """Build the network with initial weights."""
        info = self.value("task_info")
        options = {name: self.value(f"network_def#{name}") for name in ("channels", "strides", "num_res_units", "norm")}
        return UNet(spatial_dims=3, in_channels=info.num_channels, out_channels=info.num_classes, **options)

    def get_network(self) -> nn.Module:
        """Load pre-trained weights, freeze layers by the method, and move the network to its device."""
        network: nn.Module = self.network_def
        loaded = load_pretrained(network, self.value("pretrained"), **self.values("prefix", "allow_partial"))
        return check_frozen_layers(network, loaded, self.groups).to(self.device)

    def get_layers(self) -> LayerMap:
        """Find the layers of the network."""
        example = torch.empty(2, self.value("task_info").num_channels, *self.value("patch_size"))
        return map_layers(self.network_def, example, depth=self.value("depth"))

    def get_groups(self) -> list[dict[str, Any]]:
        """Build the param groups, and freeze what the method leaves out."""
        options = self.values("m", "n", "first", "lr", "head_lr", "weight_decay", "train_head")
        return param_groups(self.network_def, layers=self.layers, policy=self.value("method"), **options)

    def get_optimizer(self) -> SGD:
        """Build the optimizer."""
        _ = self.network  # its weights are loaded, and on their device, before the optimizer takes them
        return SGD(self.groups, lr=self.value("lr"), momentum=0.9, nesterov=True)

    def get_lr_scheduler(self) -> PolynomialDecay:
        """Build the schedule of the learning rate."""
        return PolynomialDecay(self.optimizer, epochs=self.max_epochs)

    def get_train_dataset(self) -> CacheDataset:
        """Build the data set of augmented patches of the training cases."""
        return self._dataset("train", "train#preprocessing", self.value("cache_rate"))

    def get_val_dataset(self) -> CacheDataset:
        """Build the data set of the validation cases."""
        return self._dataset("validation", "validate#preprocessing", self.value("cache_rate"))

    def get_meta_loader(self) -> DataLoader:
        """Build the loader of meta batches: patches of the training cases without augmentation."""
        return self._loader(self._dataset("train", "meta#preprocessing", self.value("cache_rate")))

    def get_metalr(self) -> MetaLRHandler | None:
        """Build the handler that learns rates, if the method does."""
        method = self.value("method")
        if "metalr" not in method:
            return None
        streaming = method == "metalr_streaming"
        return MetaLRHandler(
            self.optimizer,
            None if streaming else self.meta_loader,
            streaming=streaming,
            after=self.alchemy,
            **self.values("hyper_lr", "rule", "every", "output_dir"),
        )

    def get_alchemy(self) -> AlchemyHandler | None:
        """Build the handler of Network Alchemy's phases, if the method has them."""
        if not self.value("method").startswith("alchemy"):
            return None
        epochs, options = self.value("identification"), self.values("patience", "val_interval")
        return AlchemyHandler(
            self.optimizer,
            evaluator=self.evaluator,
            identification=identification_phase(epochs, total_epochs=self.max_epochs, **options),
            head=self.layers.head.parameters if self.value("train_head") else (),
            weight=self.value("penalty"),
            **self.values("threshold", "quantile", "whole_layers", "seed"),
        )

    def get_penalty(self) -> GammaPenaltyHandler | None:
        """Build the handler of the penalty on gammas, if the method is that penalty alone."""
        if self.value("method") != "bnscale":
            return None
        return GammaPenaltyHandler(self.optimizer, weight=self.value("penalty"))

    def get_train_handlers(self) -> list[Any]:
        """Build the handlers of the trainer; those of the method come first."""
        loss = from_engine(["loss"], first=True)
        return [
            *(handler for handler in (self.metalr, self.alchemy, self.penalty) if handler is not None),
            EpochSeeds(self.value("seed"), self.train_dataset),
            LrScheduleHandler(self.lr_scheduler, print_lr=True),
            ValidationHandler(validator=self.evaluator, interval=self.val_interval, epoch_level=True),
            StatsHandler(tag_name="train_loss", output_transform=loss),
            TensorBoardStatsHandler(log_dir=self.value("output_dir"), tag_name="train_loss", output_transform=loss),
        ]

    def get_val_handlers(self) -> list[Any]:
        """Build the handlers of the evaluator."""
        return [
            StatsHandler(iteration_log=False),
            TensorBoardStatsHandler(log_dir=self.value("output_dir"), iteration_log=False),
            BestModelSaver(self.value("ckpt_dir"), {"model": self.network}),
        ]

    def get_train_inferer(self) -> SimpleInferer:
        """Build the inferer of the training, which takes patches as they are."""
        return SimpleInferer()

    def get_val_inferer(self) -> SlidingWindowInferer:
        """Build the inferer of the validation, which takes whole images by patches."""
        return SlidingWindowInferer(roi_size=self.value("patch_size"), sw_batch_size=4, overlap=0.5)

    def get_evaluator(self) -> SupervisedEvaluator:
        """Build the evaluator, with Dice, PPV and sensitivity of the foreground classes."""
        pair = from_engine(PAIR)
        shared: dict[str, Any] = {"include_background": False, "compute_sample": True, "output_transform": pair}
        return SupervisedEvaluator(
            device=self.device,
            val_data_loader=DataLoader(self.val_dataset, batch_size=1, num_workers=self.value("num_workers")),
            network=self.network,
            inferer=self.val_inferer,
            postprocessing=self.value("validate#postprocessing"),
            key_val_metric={"val_mean_dice": MeanDice(include_background=False, output_transform=pair)},
            additional_metrics={
                "val_ppv": ConfusionMatrix(metric_name="precision", **shared),
                "val_sensitivity": ConfusionMatrix(metric_name="sensitivity", **shared),
            },
            val_handlers=self.val_handlers,
            amp=self.value("amp"),
        )

    def get_trainer(self) -> SupervisedTrainer:
        """Build the trainer."""
        dice = MeanDice(include_background=False, output_transform=from_engine(PAIR))
        return SupervisedTrainer(
            max_epochs=self.max_epochs,
            device=self.device,
            train_data_loader=self._loader(self.train_dataset),
            network=self.network,
            loss_function=DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True),
            optimizer=self.optimizer,
            inferer=self.train_inferer,
            postprocessing=self.value("train#postprocessing"),
            key_train_metric={"train_mean_dice": dice},
            train_handlers=self.train_handlers,
            amp=self.value("amp"),
        )

    def _dataset(self, part: str, transforms: str, cache_rate: float) -> CacheDataset:
        cases, workers = self.value("cases")[part], self.value("num_workers")
        return CacheDataset(cases, self.value(transforms), cache_rate=cache_rate, num_workers=workers)

    def _loader(self, dataset: CacheDataset) -> DataLoader:
        return DataLoader(
            dataset, batch_size=self.value("batch_size"), shuffle=True, num_workers=self.value("num_workers")
        )

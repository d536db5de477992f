"""The bundle's training as a Pythonic workflow: ``python -m monai.bundle run_workflow layertune_monai.Training``."""

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
from layertune.policies.by_name import scheme
from layertune_monai.bundle.checkpoints import BestModelSaver, RunSettings, last_checkpoint, state_of
from layertune_monai.bundle.epoch_seeds import EpochSeeds
from layertune_monai.bundle.folder import check_patch, check_paths, describe_task
from layertune_monai.bundle.polynomial_decay import PolynomialDecay
from layertune_monai.bundle.switches import OWNERS, check_switches, identification
from layertune_monai.bundle.workflow import BundleWorkflow
from layertune_monai.handlers.alchemy import AlchemyHandler
from layertune_monai.handlers.gamma_penalty import GammaPenaltyHandler
from layertune_monai.handlers.metalr import MetaLRHandler
from layertune_monai.layer_groups import param_groups
from layertune_monai.weights import load_pretrained, tuned

__all__ = ["Training"]

PAIR = ("pred", "label")


class Training(BundleWorkflow):
    """What ``configs/train.json`` of the bundle does, put together in Python: to read, and to derive from.

    Numbers, paths and transforms are read from that file, and every value may be overridden by name, as on the command
    line of ``monai.bundle run``. The same seed gives the same weights as the configuration does, bit for bit. To change
    a part, derive a class and override its ``get_<part>``; the command takes any class that can be imported.

    Args:
        **options: as ``BundleWorkflow`` takes them: ``bundle_root``, and values of the configuration by name.

    Example:
        >>> import tempfile
        >>> from layertune_monai.bundle.folder import write_bundle
        >>> workflow = Training(str(write_bundle(tempfile.mkdtemp())), method="last", logging_file=False)
        >>> workflow.initialize()
        >>> [group["layer"] for group in workflow.optimizer.param_groups], workflow.metalr
        (['model.2.1.conv.unit0.conv', 'model.2.1.conv.unit0.conv'], None)
    """

    PARTS: ClassVar[Mapping[str, str]] = {
        "network": "the network where it trains, with pre-trained weights",
        "layers": "the network's layers",
        "groups": "the param groups, one a layer",
        "optimizer": "the optimizer",
        "lr_scheduler": "the schedule of the learning rate",
        "meta_loader": "the loader of meta batches",
        "metalr": "the handler that learns rates, or None",
        "alchemy": "the handler of Network Alchemy's phases, or None",
        "penalty": "the handler of the penalty on gammas, or None",
    }

    def run(self) -> None:
        """Train, or go on with it."""
        check_paths(self.bundle_root, **self.values("ckpt_dir", "output_dir"))
        check_patch(self.value("patch_size"), self.parser["network_def"]["strides"])
        check_switches(self.value("method"), **self.values(*OWNERS))
        _ = self.network  # before anything else draws random numbers
        describe_task(self.bundle_root, self.value("task_info"))
        saver = next(handler for handler in self.val_handlers if isinstance(handler, BestModelSaver))
        settings = RunSettings(**self.values("method", "depth", "m", "n", "first", "train_head"))
        handlers = {"metalr": self.metalr, "alchemy": self.alchemy}
        state = state_of(self.trainer, self.lr_scheduler, best=saver, settings=settings, **handlers)
        CheckpointSaver(self.value("ckpt_dir"), state, save_interval=1, n_saved=1).attach(self.trainer)
        if self.value("resume"):
            last = last_checkpoint(self.value("ckpt_dir"))
            CheckpointLoader(last, state, map_location=self.device).attach(self.trainer)
        self.trainer.run()

    def get_network_def(self) -> nn.Module:
        """The network, fresh."""
        info, given = self.value("task_info"), self.parser["network_def"]
        return UNet(
            spatial_dims=3,
            in_channels=info.num_channels,
            out_channels=info.num_classes,
            **{name: given[name] for name in ("channels", "strides", "num_res_units", "norm")},
        )

    def get_network(self) -> nn.Module:
        """Weights first, then the scheme, which freezes layers."""
        network: nn.Module = self.network_def
        loaded = load_pretrained(network, self.value("pretrained"))
        return tuned(network, loaded, self.groups).to(self.device)

    def get_layers(self) -> LayerMap:
        """Traced; nothing is computed."""
        example = torch.empty(2, self.value("task_info").num_channels, *self.value("patch_size"))
        return map_layers(self.network_def, example, depth=self.value("depth"))

    def get_groups(self) -> list[dict[str, Any]]:
        """One param group a layer; what the method leaves out is frozen."""
        method = self.value("method")
        policy = scheme(method, **self.values("m", "n", "first"))
        options = self.values("lr", "head_lr", "weight_decay", "train_head")
        return param_groups(
            self.network_def, layers=self.layers, policy=method if method == "norm_only" else policy, **options
        )

    def get_optimizer(self) -> SGD:
        """SGD."""
        _ = self.network  # with its weights, where it trains
        return SGD(self.groups, lr=self.value("lr"), momentum=0.9, nesterov=True)

    def get_lr_scheduler(self) -> PolynomialDecay:
        """Over the epochs."""
        return PolynomialDecay(self.optimizer, epochs=self.max_epochs)

    def get_train_dataset(self) -> CacheDataset:
        """Augmented patches of the training cases."""
        return self._dataset("train", "train#preprocessing", self.value("cache_rate"))

    def get_val_dataset(self) -> CacheDataset:
        """The validation cases."""
        return self._dataset("validation", "validate#preprocessing", self.value("cache_rate"))

    def get_meta_loader(self) -> DataLoader:
        """Patches of the training cases as they are."""
        return self._loader(self._dataset("train", "meta#preprocessing", self.value("cache_rate")))

    def get_metalr(self) -> MetaLRHandler | None:
        """The handler, where rates are to be learned."""
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
        """The handler, where phases are to be gone through."""
        if not self.value("method").startswith("alchemy"):
            return None
        epochs, options = self.value("identification"), self.values("patience", "val_interval")
        return AlchemyHandler(
            self.optimizer,
            evaluator=self.evaluator,
            identification=identification(epochs, of=self.max_epochs, **options),
            head=self.layers.head.parameters if self.value("train_head") else (),
            weight=self.value("penalty"),
            **self.values("threshold", "quantile", "whole_layers", "seed"),
        )

    def get_penalty(self) -> GammaPenaltyHandler | None:
        """The handler, where the penalty is all."""
        of_it = self.value("method") == "bnscale"
        return GammaPenaltyHandler(self.optimizer, weight=self.value("penalty")) if of_it else None

    def get_train_handlers(self) -> list[Any]:
        """Those of the method come first."""
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
        """What follows a validation."""
        return [
            StatsHandler(iteration_log=False),
            TensorBoardStatsHandler(log_dir=self.value("output_dir"), iteration_log=False),
            BestModelSaver(self.value("ckpt_dir"), {"model": self.network}),
        ]

    def get_train_inferer(self) -> SimpleInferer:
        """A patch at a time."""
        return SimpleInferer()

    def get_val_inferer(self) -> SlidingWindowInferer:
        """Whole images by patches."""
        return SlidingWindowInferer(roi_size=self.value("patch_size"), sw_batch_size=4, overlap=0.5)

    def get_evaluator(self) -> SupervisedEvaluator:
        """Dice, PPV and sensitivity of the foreground classes."""
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
        """The engine."""
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

"""The four hosts of the contract: how their users train, give settings, and train the toy."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from host_contract import End, Host
from host_toy import EXAMPLE, META, RATE, TRAINING, loss_of, sgd, toy_network, train_steps
from layertune import Convergence, MetaLR, MetaLRSettings

__all__ = ["HOSTS"]


class Timm(Host):
    """timm's factory and scheduler in a loop as in its train.py; the unit is a step."""

    package = "layertune_timm"
    has_alchemy = False

    def train(self, folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        import timm
        from timm.optim import create_optimizer_v2
        from timm.scheduler import CosineLRScheduler
        from torch.nn.functional import cross_entropy

        from layertune_timm import all_layers

        torch.manual_seed(0)
        block = timm.models.resnet.BasicBlock
        model = timm.models.ResNet(block, (1, 1, 1, 1), num_classes=2, in_chans=1, channels=(4, 8, 8, 8))
        grouper = None if hyper_lr is None else all_layers()
        optimizer = create_optimizer_v2(model, "sgd", lr=0.05, weight_decay=1e-3, param_group_fn=grouper)
        scheduler = CosineLRScheduler(optimizer, t_initial=8, t_in_epochs=False)
        metalr = None
        if hyper_lr is not None:
            metalr = MetaLR(optimizer, hyper_lr=hyper_lr, rule="proportional", streaming=True)
        if first:
            saved = torch.load(folder / "last.pth", weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.step_update(first)
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(4, 1, 32, 32, generator=generator), torch.randint(0, 2, (4,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step_update(step + 1)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pth")
        lrs = metalr.lrs if metalr else {}
        if metalr:
            metalr.detach()
        return End(model, optimizer, lrs)

    def make(self, folder: Path, **settings: Any) -> None:  # noqa: ARG002
        MetaLR(sgd(toy_network()), **settings)

    def learn(self, folder: Path, **settings: Any) -> list[float]:  # noqa: ARG002
        import timm.optim

        from layertune_timm.optimizer_factory import LayerwiseFactory
        from layertune_timm.train_options import Scheme

        network = toy_network()
        with LayerwiseFactory(Scheme("all_layers"), MetaLRSettings.given(**settings)) as factory:
            # timm's "sgd" has Nesterov's momentum, its "momentum" has not.
            optimizer = timm.optim.create_optimizer_v2(network, "momentum", lr=RATE, momentum=0.9, weight_decay=0.0)
            assert factory.metalr is not None
            return train_steps(network, optimizer, factory.metalr)


class Lightning(Host):
    """A Trainer with the callback, on an unchanged module; the unit is an epoch."""

    package = "layertune_lightning"

    def train(self, folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        from layertune_lightning import MetaLRCallback
        from lightning_runs import Module, fit

        module = Module(schedule="epoch")
        module.net[3].p = 0.0  # Lightning does not save the random state that dropout draws from
        learner = [] if hyper_lr is None else [MetaLRCallback(hyper_lr=hyper_lr)]
        run = fit(module, *learner, max_epochs=last, ckpt_path=folder / "last.ckpt" if first else None)
        run.save_checkpoint(folder / "last.ckpt")
        return End(module, run.optimizers[0], learner[0].lrs if learner else {})

    def make(self, folder: Path, **settings: Any) -> None:  # noqa: ARG002
        from layertune_lightning import MetaLRCallback

        MetaLRCallback(**settings)

    def make_alchemy(self, folder: Path, **settings: Any) -> None:  # noqa: ARG002
        from layertune_lightning import AlchemyCallback

        AlchemyCallback(identification=Convergence(limit=2), **settings)

    def learn(self, folder: Path, **settings: Any) -> list[float]:  # noqa: ARG002
        import pytorch_lightning as pl

        from layertune_lightning import MetaLRCallback
        from lightning_runs import fit

        class Toy(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = toy_network()
                self.example_input_array = EXAMPLE

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
                return loss_of(self(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return sgd(self)

        callback = MetaLRCallback(meta_loader=None if settings.get("streaming") else META, **settings)
        # A list of batches would be one loader each.
        fit(Toy(), callback, loader=DataLoader(TRAINING, batch_size=None), max_epochs=1)
        return list(callback.lrs.values())


class Monai(Host):
    """An engine with the handler, and MONAI's own checkpoints; the unit is an epoch."""

    package = "layertune_monai"

    def train(self, folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        from monai_runs import META as BATCHES
        from monai_runs import saved_run

        handler = None if hyper_lr is None else {"hyper_lr": hyper_lr, "meta_loader": BATCHES}
        model, optimizer, learner = saved_run(folder, handler=handler, first=first, last=last)
        lrs = learner.lrs if learner else {}
        if learner:
            learner.detach()
        return End(model, optimizer, lrs)

    def make(self, folder: Path, **settings: Any) -> None:  # noqa: ARG002
        from layertune_monai import MetaLRHandler

        MetaLRHandler(sgd(toy_network()), **settings)

    def make_alchemy(self, folder: Path, **settings: Any) -> None:  # noqa: ARG002
        from layertune_monai import AlchemyHandler

        AlchemyHandler(sgd(toy_network()), identification=Convergence(limit=2), **settings)

    def learn(self, folder: Path, **settings: Any) -> list[float]:  # noqa: ARG002
        from layertune_monai import MetaLRHandler
        from monai_runs import train

        training, meta = ([{"image": image, "label": label} for image, label in of] for of in (TRAINING, META))
        network = toy_network()
        optimizer = sgd(network)
        handler = MetaLRHandler(optimizer, None if settings.get("streaming") else meta, **settings)
        train(network, optimizer, handler, loader=training, epochs=1, loss_function=loss_of)
        return list(handler.lrs.values())


class NnUNet(Host):
    """A training on a small data set, killed and continued with nnU-Net's own checkpoints; the unit is an epoch."""

    package = "layertune_nnunet"
    preset = "long_training"

    def train(self, folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        from nnunetv2.run.run_training import maybe_load_checkpoint
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from layertune_nnunet import nnUNetTrainerMetaLR
        from nnunet_runs import Killed, make, preprocessed

        values = {} if hyper_lr is None else {"hyper_lr": hyper_lr}
        with preprocessed(folder):
            trainer = make(nnUNetTrainerMetaLR if values else nnUNetTrainer, epochs=4, stop_at=(last, 0), **values)
            maybe_load_checkpoint(trainer, continue_training=bool(first), validation_only=False)
            with suppress(Killed):
                trainer.run_training()
            if not first:  # what a training that was killed leaves
                (Path(trainer.output_folder) / "checkpoint_final.pth").unlink(missing_ok=True)
        profile = getattr(trainer, "profile", None)
        lrs = dict(zip(profile.layers, profile.lrs[-1], strict=True)) if profile else {}
        return End(trainer.network, trainer.optimizer, lrs)

    def make(self, folder: Path, **settings: Any) -> None:
        from layertune_nnunet import nnUNetTrainerMetaLR
        from nnunet_runs import make, preprocessed

        with preprocessed(folder):
            make(nnUNetTrainerMetaLR, **settings)

    def make_alchemy(self, folder: Path, **settings: Any) -> None:
        from layertune_nnunet import nnUNetTrainerAlchemy
        from nnunet_runs import make, preprocessed

        with preprocessed(folder):
            make(nnUNetTrainerAlchemy, **settings)

    def learn(self, folder: Path, **settings: Any) -> list[float]:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from torch.optim.lr_scheduler import LambdaLR

        from layertune_nnunet import MetaLRMixin, MetaLRStreamingMixin
        from nnunet_runs import make, preprocessed

        class ToyTrainer(nnUNetTrainer):
            @staticmethod
            def build_network_architecture(
                plans_manager: Any,  # noqa: ARG004 - nnU-Net reads the names off the signature
                configuration_manager: Any,  # noqa: ARG004
                num_input_channels: int,  # noqa: ARG004
                num_output_channels: int,  # noqa: ARG004
                enable_deep_supervision: bool = True,  # noqa: ARG004
            ) -> nn.Module:
                return toy_network()

            def configure_optimizers(self) -> Any:
                optimizer = sgd(self.network)
                return optimizer, LambdaLR(optimizer, lambda _: 1.0)

            def _build_loss(self) -> Any:
                return loss_of

        def batches(of: Any) -> Iterator[dict[str, Tensor]]:
            return ({"data": image, "target": label} for image, label in of)

        mixin = MetaLRStreamingMixin if settings.get("streaming") else MetaLRMixin
        with preprocessed(folder):
            trainer = make(type("nnUNetTrainerToy", (mixin, ToyTrainer), {}), "2d", **settings)
            trainer.initialize()
            trainer.dataloader_meta = batches(cycle(META))
            for batch in batches(TRAINING):
                trainer.train_step(batch)
        return list(trainer.metalr.lrs.values())


HOSTS: tuple[Host, ...] = (Timm(), Lightning(), NnUNet(), Monai())

"""The pneumonia study's trainings, each written as a user of Lightning writes it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryRecall, BinarySpecificity, MulticlassAccuracy

from layertune_studies.data.digits import SIDE, digits
from layertune_studies.training.lightning import quiet_trainer

__all__ = ["NETWORKS", "Network", "Scores", "XRays", "pretrain", "tune"]

Scores = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the networks that are fine-tuned.

    Attributes:
        title: for tables.
        build: makes it, for one channel and a number of classes.
        optimizer: the one that is customary for it; its rate is that of the study.
        lrs: rates that are tried for all layers; the lowest is where learned rates start without a search.
        pretrain_lr: the highest rate of the pre-training.
        pretrain_steps: of 32 digits; a transformer needs more.
    """

    title: str
    build: Callable[[int], nn.Module]
    optimizer: Callable[..., Optimizer]
    lrs: tuple[float, ...]
    pretrain_lr: float
    pretrain_steps: int


def _resnet18(classes: int) -> nn.Module:
    made: nn.Module = timm.create_model("resnet18", in_chans=1, num_classes=classes)
    return made


def _small_vit(classes: int) -> nn.Module:
    return VisionTransformer(
        img_size=SIDE,
        patch_size=7,
        in_chans=1,
        num_classes=classes,
        global_pool="avg",
        embed_dim=64,
        depth=6,
        num_heads=4,
    )


def _sgd(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    return SGD(parameters, lr=lr, momentum=0.9)


NETWORKS = {
    "resnet18": Network(
        title="ResNet-18", build=_resnet18, optimizer=_sgd, lrs=(2e-3, 1e-2, 5e-2), pretrain_lr=2e-2, pretrain_steps=100
    ),
    "vit": Network(
        title="Small ViT",
        build=_small_vit,
        optimizer=AdamW,
        lrs=(1e-4, 5e-4, 2.5e-3),
        pretrain_lr=2e-3,
        pretrain_steps=400,
    ),
}


class _Classifier(pl.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.example_input_array = torch.zeros(2, 1, SIDE, SIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        scores: Tensor = self.network(x)
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy."""
        images, labels = batch
        return cross_entropy(self(images), labels)


class Digits(_Classifier):
    """Which digit is written."""

    def __init__(self, network: nn.Module, optimizer: Callable[..., Optimizer], lr: float) -> None:
        super().__init__(network)
        self.optimizer, self.lr = optimizer, lr
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Accuracy."""
        self.accuracy(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy)

    def configure_optimizers(self) -> Any:
        """One cycle."""
        optimizer = self.optimizer(self.parameters(), lr=self.lr)
        schedule = OneCycleLR(optimizer, self.lr, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class XRays(_Classifier):
    """Whether an X-ray shows pneumonia.

    Args:
        network: scores of two classes; 1 is pneumonia.
        optimizer: of parameters and ``lr``.
        lr: its rate.
    """

    def __init__(self, network: nn.Module, optimizer: Callable[..., Optimizer], lr: float) -> None:
        super().__init__(network)
        self.optimizer, self.lr = optimizer, lr
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": BinaryAccuracy(),
            "sensitivity": BinaryRecall(),
            "specificity": BinarySpecificity(),
        }
        self.metrics = MetricCollection(metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Loss, accuracy, sensitivity, specificity."""
        images, labels = batch
        scores = self(images)
        self.metrics.update(scores.argmax(1), labels)
        self.log("loss", cross_entropy(scores, labels))
        self.log_dict(self.metrics)

    def configure_optimizers(self) -> Optimizer:
        """At one constant rate; frozen parameters are left out."""
        return self.optimizer([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def pretrain(spec: Network) -> dict[str, Any]:
    """A network that reads digits.

    Returns:
        ``network``, its state dict, and ``accuracy`` on digits that it was not trained on.
    """
    images, held_out = digits()
    torch.manual_seed(0)
    module = Digits(spec.build(10), spec.optimizer, spec.pretrain_lr)
    trainer = quiet_trainer(max_steps=spec.pretrain_steps, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, DataLoader(images, batch_size=32, shuffle=True, drop_last=True))
    return {"network": module.network.state_dict(), "accuracy": _evaluated(module, held_out)["accuracy"]}


def tune(
    module: XRays,
    callbacks: Iterable[pl.Callback],
    *,
    train: Dataset[Any],
    validation: Dataset[Any],
    test: Dataset[Any],
    steps: int,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """Fine-tune, and look at the result.

    Args:
        module: with the network to start from.
        callbacks: how layers are tuned; none for all at one rate.
        train: labelled images.
        validation: chooses among settings.
        test: reported.
        steps: of the optimizer.
        batch: images in a batch.
        seed: fixes the order of the images.

    Returns:
        ``validation`` and ``test``: loss, accuracy, sensitivity, specificity; ``seconds`` of CPU time that the fit
        took, which other work on the machine hardly changes.
    """
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(train, batch_size=batch, shuffle=True, drop_last=True, generator=order)
    trainer = quiet_trainer(max_steps=steps, max_epochs=-1, limit_val_batches=0, callbacks=list(callbacks))
    start = time.process_time()
    trainer.fit(module, loader)
    seconds = time.process_time() - start
    return {"validation": _evaluated(module, validation), "test": _evaluated(module, test), "seconds": seconds}


def _evaluated(module: pl.LightningModule, images: Dataset[Any]) -> Scores:
    loader = DataLoader(images, batch_size=128)
    (found,) = quiet_trainer().validate(module, loader, verbose=False)
    return {name: float(value) for name, value in found.items()}

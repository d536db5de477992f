"""The networks of the step benchmark, each with its loss and batches of random numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

__all__ = ["STEP_NETWORKS", "StepNetwork"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class StepNetwork:
    """A network with its data and its optimizer.

    Attributes:
        build: A function that makes the network, with random weights.
        shape: Shape of an input, batch first.
        target_shape: Shape of a target, which holds whole numbers below ``classes``.
        classes: The number of classes that the network tells apart.
        optimizer: A function that makes the host's optimizer from param groups.
        lr: Learning rate of the optimizer.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    classes: int
    optimizer: Callable[..., Optimizer]
    lr: float

    def batch(self) -> Batch:
        """Return a batch of random images and labels."""
        return torch.randn(self.shape), torch.randint(self.classes, self.target_shape)

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy, for volumes the mean over the voxels."""
        return cross_entropy(output, target)


def _resnet18() -> nn.Module:
    import timm

    return timm.create_model("resnet18", num_classes=10)


def _unet3d() -> nn.Module:
    from monai.networks.nets import UNet

    channels, strides = (16, 32, 64, 128), (2, 2, 2)
    return UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=channels, strides=strides, norm="batch")


def _sgd(groups: list[dict[str, object]]) -> Optimizer:
    return SGD(groups, momentum=0.9)


STEP_NETWORKS = {
    "resnet18": StepNetwork(
        build=_resnet18, shape=(32, 3, 64, 64), target_shape=(32,), classes=10, optimizer=_sgd, lr=1e-3
    ),
    "resnet18_adamw": StepNetwork(
        build=_resnet18, shape=(32, 3, 64, 64), target_shape=(32,), classes=10, optimizer=AdamW, lr=1e-4
    ),
    "unet3d": StepNetwork(
        build=_unet3d, shape=(2, 1, 64, 64, 64), target_shape=(2, 64, 64, 64), classes=3, optimizer=_sgd, lr=1e-3
    ),
}

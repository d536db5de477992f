"""One small network for each kind of normalisation, with a norm that scales kernels and one that does not."""

import torch
from torch import Tensor, nn


class ChannelsLast(nn.Module):
    """A layer norm over the channels of a feature map that is turned for it, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RmsNorm(nn.Module):
    """Of no class of torch's, as timm's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.weight


class NormAct(nn.BatchNorm2d):
    """A norm that holds its activation, as timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def of(norm: nn.Module) -> nn.Module:
    """Six kernels under a norm."""
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(6, 2, 1))


FAMILIES = {
    "batch": lambda: of(nn.BatchNorm2d(6)),
    "batch, synchronised": lambda: of(nn.SyncBatchNorm(6)),
    "instance": lambda: of(nn.InstanceNorm2d(6, affine=True)),
    "instance, tracked": lambda: of(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
    "group": lambda: of(nn.GroupNorm(3, 6)),
    "one group": lambda: of(nn.GroupNorm(1, 6)),
    "layer, channels last": lambda: of(ChannelsLast(6)),
    "rms, a class of its own": lambda: of(RmsNorm(6)),
    "with its activation": lambda: of(NormAct(6)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU()),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(1, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ELU()),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(1, 6, 2, 2), nn.BatchNorm2d(6), nn.LeakyReLU(0.1)),
    "transposed, grouped": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6), nn.PReLU()
    ),
    "dropout between": lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.Dropout2d(0.2), nn.BatchNorm2d(6), nn.ReLU()),
}


class PreActivation(nn.Module):
    """Norm, activation, convolution, twice, and a shortcut: only the second norm follows a convolution alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(torch.relu(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        return torch.relu(self.norm3(x + y))


def image(batch: int = 4) -> Tensor:
    return torch.randn(batch, 1, 8, 8)

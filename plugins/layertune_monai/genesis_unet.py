"""The 3D U-Net of Models Genesis, parameter for parameter, so that its published weights load."""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

__all__ = ["GenesisUNet"]


class BatchStatisticsNorm(nn.BatchNorm3d):
    """Batch normalisation that takes the batch's own statistics in training and in inference alike."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch names it so
        """Normalise (B, C, x, y, z); the running statistics move along in training only."""
        running = (self.running_mean, self.running_var) if self.training else (None, None)
        return batch_norm(input, *running, self.weight, self.bias, True, self.momentum or 0.0, self.eps)


class Convolution(nn.Module):
    """3x3x3 convolution with bias, norm, ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, out, 3, padding=1)
        self.bn1 = BatchStatisticsNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) to (B, out, x, y, z)."""
        activated: Tensor = torch.relu(self.bn1(self.conv1(x)))
        return activated


class Down(nn.Module):
    """Two convolutions at one resolution."""

    def __init__(self, channels: int, middle: int, out: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(Convolution(channels, middle), Convolution(middle, out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) to (B, out, x, y, z)."""
        features: Tensor = self.ops(x)
        return features


class Up(nn.Module):
    """A transposed convolution to twice the resolution, and two convolutions on it and the skipped features."""

    def __init__(self, channels: int, skipped: int, out: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(channels, channels, 2, stride=2)
        self.ops = nn.Sequential(Convolution(channels + skipped, out), Convolution(out, out))

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        """(B, C, x, y, z) and (B, skipped, 2x, 2y, 2z) to (B, out, 2x, 2y, 2z)."""
        features: Tensor = self.ops(torch.cat([self.up_conv(x), skipped], dim=1))
        return features


class Out(nn.Module):
    """The 1x1x1 convolution that makes the output."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) to logits (B, out, x, y, z)."""
        logits: Tensor = self.final_conv(x)
        return logits


class GenesisUNet(nn.Module):
    """The 3D U-Net of Models Genesis (Zhou et al. 2019), with its names of parameters.

    ``layertune_monai.load_pretrained(GenesisUNet(out_channels=3), "Genesis_Chest_CT.pt")`` takes all but the head,
    which restores images there and has one channel. Batch normalisation always uses the batch's statistics, as there.
    The output is logits; the published network ends in a sigmoid, which a loss for segmentation brings itself.

    Args:
        in_channels: channels of an image; 1 for the published weights.
        out_channels: classes.

    Example:
        >>> net = GenesisUNet(in_channels=1, out_channels=2).eval()
        >>> net(torch.zeros(1, 1, 16, 16, 8)).shape
        torch.Size([1, 2, 16, 16, 8])
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1) -> None:
        super().__init__()
        self.down_tr64 = Down(in_channels, 32, 64)
        self.down_tr128 = Down(64, 64, 128)
        self.down_tr256 = Down(128, 128, 256)
        self.down_tr512 = Down(256, 256, 512)
        self.up_tr256 = Up(512, 256, 256)
        self.up_tr128 = Up(256, 128, 128)
        self.up_tr64 = Up(128, 64, 64)
        self.out_tr = Out(64, out_channels)
        self.maxpool = nn.MaxPool3d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of an image.

        Args:
            x: (B, in_channels, x, y, z), each side a multiple of 8.

        Returns:
            (B, out_channels, x, y, z).
        """
        features_64 = self.down_tr64(x)
        features_128 = self.down_tr128(self.maxpool(features_64))
        features_256 = self.down_tr256(self.maxpool(features_128))
        x = self.down_tr512(self.maxpool(features_256))
        x = self.up_tr256(x, features_256)
        x = self.up_tr128(x, features_128)
        logits: Tensor = self.out_tr(self.up_tr64(x, features_64))
        return logits

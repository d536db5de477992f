"""The 3D U-Net of Models Genesis, parameter for parameter, so that its published weights load."""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

__all__ = ["GenesisUNet"]


class BatchStatisticsNorm(nn.BatchNorm3d):
    """Normalise with the statistics of the batch, in training and in inference alike."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch names it so
        """Normalise a batch of shape (B, C, x, y, z). The running statistics follow in training only."""
        running = (self.running_mean, self.running_var) if self.training else (None, None)
        return batch_norm(input, *running, self.weight, self.bias, True, self.momentum or 0.0, self.eps)


class Convolution(nn.Module):
    """A 3x3x3 convolution with bias, a norm and a ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, out, 3, padding=1)
        self.bn1 = BatchStatisticsNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, x, y, z) to (B, out, x, y, z)."""
        activated: Tensor = torch.relu(self.bn1(self.conv1(x)))
        return activated


class Down(nn.Module):
    """Two convolutions at one resolution."""

    def __init__(self, channels: int, middle: int, out: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(Convolution(channels, middle), Convolution(middle, out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, x, y, z) to (B, out, x, y, z)."""
        features: Tensor = self.ops(x)
        return features


class Up(nn.Module):
    """A transposed convolution to twice the resolution, and two convolutions on it and the skipped features."""

    def __init__(self, channels: int, skipped: int, out: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(channels, channels, 2, stride=2)
        self.ops = nn.Sequential(Convolution(channels + skipped, out), Convolution(out, out))

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        """Map (B, C, x, y, z) and (B, skipped, 2x, 2y, 2z) to (B, out, 2x, 2y, 2z)."""
        features: Tensor = self.ops(torch.cat([self.up_conv(x), skipped], dim=1))
        return features


class Out(nn.Module):
    """The 1x1x1 convolution that makes the output."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, x, y, z) to logits (B, out, x, y, z)."""
        logits: Tensor = self.final_conv(x)
        return logits


class GenesisUNet(nn.Module):
    """The 3D U-Net of Models Genesis (Zhou et al. 2019), with the same names of parameters.

    ``layertune_monai.load_pretrained(GenesisUNet(out_channels=3), "Genesis_Chest_CT.pt")`` loads everything but the
    head, which restores images in the published network and has one channel there. Batch normalisation always uses the
    statistics of the batch, as there. The output is logits; the published network ends in a sigmoid, which a loss for
    segmentation applies itself.

    Args:
        in_channels: The number of channels of an image; 1 for the published weights.
        out_channels: The number of classes.
        width: The number of channels of the first convolution. All other numbers of channels are multiples of it. It is
            32 for the published weights.

    Example:
        >>> net = GenesisUNet(in_channels=1, out_channels=2, width=4).eval()
        >>> net(torch.zeros(1, 1, 16, 16, 8)).shape
        torch.Size([1, 2, 16, 16, 8])
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 1, *, width: int = 32) -> None:
        super().__init__()
        self.down_tr64 = Down(in_channels, width, 2 * width)
        self.down_tr128 = Down(2 * width, 2 * width, 4 * width)
        self.down_tr256 = Down(4 * width, 4 * width, 8 * width)
        self.down_tr512 = Down(8 * width, 8 * width, 16 * width)
        self.up_tr256 = Up(16 * width, 8 * width, 8 * width)
        self.up_tr128 = Up(8 * width, 4 * width, 4 * width)
        self.up_tr64 = Up(4 * width, 2 * width, 2 * width)
        self.out_tr = Out(2 * width, out_channels)
        self.maxpool = nn.MaxPool3d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of an image.

        Args:
            x: The image, of shape (B, in_channels, x, y, z). Each side is a multiple of 8.

        Returns:
            Logits of shape (B, out_channels, x, y, z).
        """
        features_64 = self.down_tr64(x)
        features_128 = self.down_tr128(self.maxpool(features_64))
        features_256 = self.down_tr256(self.maxpool(features_128))
        x = self.down_tr512(self.maxpool(features_256))
        x = self.up_tr256(x, features_256)
        x = self.up_tr128(x, features_128)
        logits: Tensor = self.out_tr(self.up_tr64(x, features_64))
        return logits

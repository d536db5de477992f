"""A 3D LinkNet, whose tensors have the names and shapes of those that the package deepbet brings."""

from torch import Tensor, nn

__all__ = ["LinkNet"]

WIDTHS = (16, 32, 64, 128)  # channels of the four stages


class LinkNet(nn.Module):
    """A U-shaped network of residual blocks, whose decoder adds the encoder's features (LinkNet, in three dimensions).

    The network of deepbet (Fisch et al. 2024), which finds the brain in T1-weighted MRI, written anew. The instance
    norms have no parameters. The output holds logits, where deepbet's own has passed a softmax.

    Args:
        in_channels: The number of channels of a volume.
        out_channels: The number of classes, background included.

    Shape:
        A batch (cases, in_channels, x, y, z) gives logits (cases, out_channels, x, y, z). Each side has to be a
        multiple of 32.

    Example:
        >>> import torch
        >>> LinkNet(out_channels=3)(torch.zeros(1, 1, 64, 32, 64)).shape
        torch.Size([1, 3, 64, 32, 64])
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 2) -> None:
        super().__init__()
        first, second, third, fourth = WIDTHS
        opening = nn.Conv3d(in_channels, first, 7, stride=2, padding=3, bias=False)
        self.init = nn.Sequential(*_normalised(opening), nn.MaxPool3d(3, stride=2, padding=1))
        self.down0 = _Down(first, first)
        self.down1 = _Down(first, second)
        self.down2 = _Down(second, third)
        self.down3 = _Down(third, fourth)
        self.up0 = _Up(fourth, third)
        self.up1 = _Up(third, second)
        self.up2 = _Up(second, first)
        self.up3 = _Up(first, first, stride=1)
        half = first // 2
        self.tp_conv1 = nn.Sequential(*_normalised(_doubling(first, half)))
        self.conv = nn.Sequential(*_normalised(nn.Conv3d(half, half, 3, padding=1)))
        self.tp_conv2 = nn.ConvTranspose3d(half, out_channels, 2, stride=2)

    def forward(self, volume: Tensor) -> Tensor:
        """Return the logits of each voxel."""
        quarter = self.init(volume)
        first = self.down0(quarter)
        second = self.down1(first)
        third = self.down2(second)
        up = self.up0(self.down3(third)) + third
        up = self.up1(up) + second
        up = self.up2(up) + first
        up = self.up3(up) + quarter
        logits: Tensor = self.tp_conv2(self.conv(self.tp_conv1(up)))
        return logits


class _Down(nn.Module):
    """Two residual blocks, the first of which halves the resolution where it widens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block1 = _Block(inputs, outputs)
        self.block2 = _Block(outputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.block2(self.block1(features))
        return output


class _Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.double_conv = nn.Sequential(
            *_normalised(nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)),
            nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm3d(outputs),
        )
        self.downsample = None
        if stride > 1:
            shortcut = nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.InstanceNorm3d(outputs))
        self.act = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        output: Tensor = self.act(self.double_conv(features) + shortcut)
        return output


class _Up(nn.Module):
    """A bottleneck whose transposed convolution doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 2) -> None:
        super().__init__()
        narrow = inputs // 4
        self.conv1 = nn.Sequential(*_normalised(nn.Conv3d(inputs, narrow, 1, bias=False)))
        self.tp_conv = nn.Sequential(*_normalised(_doubling(narrow, narrow, stride=stride, bias=False)))
        self.conv2 = nn.Sequential(*_normalised(nn.Conv3d(narrow, outputs, 1, bias=False)))

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.conv2(self.tp_conv(self.conv1(features)))
        return output


def _doubling(inputs: int, outputs: int, *, stride: int = 2, bias: bool = True) -> nn.ConvTranspose3d:
    """Return a transposed convolution that multiplies each side by its stride."""
    return nn.ConvTranspose3d(inputs, outputs, 3, stride=stride, padding=1, output_padding=stride - 1, bias=bias)


def _normalised(convolution: nn.Conv3d | nn.ConvTranspose3d) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a convolution with the norm and the activation that follow it."""
    return convolution, nn.InstanceNorm3d(convolution.out_channels), nn.ReLU()

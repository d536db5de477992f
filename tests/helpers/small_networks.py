"""Small networks whose maps a person can draw, and a strategy for random ones."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class SmallUNet(nn.Module):
    """Levels of double convolutions, transposed convolutions, skips by concatenation, heads for deep supervision."""

    def __init__(self, widths: tuple[int, ...] = (2, 4, 8), deep_supervision: bool = False) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList([DoubleConv(1, widths[0]), *(DoubleConv(a, b, stride=2) for a, b in pairs)])
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(DoubleConv(2 * a, a) for a, _ in reversed(pairs))
        self.heads = nn.ModuleList(nn.Conv2d(a, 3, 1) for a, _ in reversed(pairs))
        self.deep_supervision = deep_supervision

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        skips.pop()
        outputs = []
        for up, merge, head in zip(self.up, self.merge, self.heads, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
            if self.deep_supervision or not skips:
                outputs.append(head(x))
        return outputs[::-1] if self.deep_supervision else outputs[0]


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if (inputs, stride) != (outputs, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class SmallResNet(nn.Sequential):
    """The plan of ResNet-18 with few channels: a stem, eight residual blocks, a classifier."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            *(Residual(width, width, 2 if index in (2, 4, 6) else 1) for index in range(8)),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, 3)


class LowRank(nn.Module):
    """A linear layer with a low-rank branch beside it, as LoRA adds."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.b(self.a(x))


class TransformerBlock(nn.Module):
    def __init__(self, low_rank: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        if low_rank:
            self.fc1, self.fc2 = LowRank(self.fc1), LowRank(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SmallTransformer(nn.Module):
    """Tokens of an image, a class token, positions, two pre-norm blocks, a final norm, a classifier."""

    def __init__(self, low_rank: bool = False) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 8))
        self.patch_embed = nn.Conv2d(1, 8, 2, 2)
        self.blocks = nn.Sequential(TransformerBlock(low_rank), TransformerBlock(low_rank))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Shared(nn.Module):
    """Calls one convolution twice, ties a second one's weight to a first, and leaves a third unused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, 1, 1)
        self.twice = nn.Conv2d(2, 2, 3, 1, 1)
        self.tied = nn.Conv2d(2, 2, 3, 1, 1)
        self.tied.weight = self.twice.weight
        self.auxiliary = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.twice(torch.relu(self.first(x)))))
        return self.last(torch.relu(self.tied(torch.relu(x))))


def image(batch: int = 2) -> Tensor:
    """What every network here takes but the transformer's 8 x 8 image."""
    return torch.empty(batch, 1, 16, 16)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A random plain, residual, U-shaped or weight-sharing network on one-channel images."""
    kind = draw(st.sampled_from(["plain", "residual", "u", "shared"]))
    if kind == "u":
        widths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
        return SmallUNet(tuple(widths), deep_supervision=draw(st.booleans()))
    layers: list[nn.Module] = [nn.Conv2d(1, 2, 3, 1, 1, bias=draw(st.booleans()))]
    for _ in range(draw(st.integers(0, 5))):
        stride = draw(st.sampled_from([1, 1, 2]))
        if kind == "residual":
            layers.append(Residual(2, 2, stride))
        elif kind == "shared" and len(layers) > 1 and draw(st.booleans()):
            layers.append(draw(st.sampled_from(layers[1:])))
        else:
            norm = draw(st.sampled_from([nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Identity()]))
            layers.append(nn.Sequential(nn.Conv2d(2, 2, 3, stride, 1), norm, nn.ReLU()))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))

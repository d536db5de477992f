"""Which norm scales which kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from layertune import trace
from layertune.alchemy.kernels import KernelNorms, kernel_rows, pair_kernels
from norm_networks import FAMILIES, PreActivation, image


def pairs_of(net: nn.Module, x: Tensor | None = None) -> KernelNorms:
    return pair_kernels(net, trace(net, image() if x is None else x))


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_has_a_pair(make: Callable[[], nn.Module]) -> None:
    both = pairs_of(make())
    (pair,) = both.pairs.values()
    assert pair.kernels == 6
    assert both.unpaired == {}


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
def test_gamma_c_scales_what_kernel_c_makes(make: Callable[[], nn.Module]) -> None:
    """Only channel c of the operation's output depends on kernel c."""
    net = make().eval()
    (pair,) = pairs_of(net).pairs.values()
    operation = net.get_submodule(pair.operation)
    seen: list[Tensor] = []
    handle = operation.register_forward_hook(lambda *args: seen.append(args[2].detach().clone()))
    x = image()
    rows = kernel_rows(operation)
    net(x)
    for c in range(6):
        before = operation.weight.detach().clone()
        rows[c // rows.shape[1], c % rows.shape[1]] += 1
        net(x)
        with torch.no_grad():
            operation.weight.copy_(before)
        changed = (seen[0] != seen[-1]).transpose(0, 1).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [c]
    handle.remove()


def test_pre_activation_norms_are_reported() -> None:
    both = pairs_of(PreActivation())
    assert list(both.pairs) == ["norm2"]
    assert set(both.unpaired) == {"norm1", "norm3"}
    assert all("pre-activation" in reason for reason in both.unpaired.values())


class Forked(nn.Module):
    """A convolution that a norm and another reader read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) + x


class Twice(nn.Module):
    """One norm over two convolutions, one convolution under two norms, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 6, 3), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.c, self.norm1, self.norm2 = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.d, self.norm3 = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.norm(self.a(x)) + self.norm(self.b(x))
        y = self.c(x)
        return shared + self.norm1(y) + self.norm2(y) + self.norm3(self.d(x)) + self.norm3(self.d(-x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3), nn.Conv2d(1, 6, 3)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) + self.b(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(8, 6)), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x @ self.weight)


def test_readers_beside_the_norm_forbid_a_pair() -> None:
    assert list(pairs_of(Forked()).unpaired) == ["norm"]


def test_shared_norms_and_convolutions() -> None:
    both = pairs_of(Twice())
    assert set(both.unpaired) == {"norm", "norm1", "norm2"}
    assert both.pairs["norm3"].operation == "d", "both outputs go through one norm, so the kernel is redundant in both"


def test_a_shared_weight_forbids_a_pair() -> None:
    assert "shares its weight" in pairs_of(Tied()).unpaired["norm"]


def test_kernels_that_are_no_plain_weight_forbid_a_pair() -> None:
    assert "not the weight" in pairs_of(Functional()).unpaired["norm"]
    spectral = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 6, 3)), nn.BatchNorm2d(6))
    assert "not the weight" in pairs_of(spectral).unpaired["1"]


def test_gammas_of_another_number_than_the_kernels_forbid_a_pair() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.LayerNorm((6, 6, 6)))
    assert pairs_of(net).unpaired == {"1": "it has 216 gammas for the 6 kernels of 0"}
    shuffled = nn.Sequential(nn.Conv2d(1, 24, 3), nn.PixelShuffle(2), nn.BatchNorm2d(6))
    assert list(pairs_of(shuffled).unpaired) == ["2"]


def test_a_norm_that_does_not_run_is_reported() -> None:
    class Spare(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    both = pairs_of(Spare(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    assert both.unpaired == {"2": "it did not run in the traced forward"}


def test_wrappers_do_not_change_names() -> None:
    net = FAMILIES["batch"]()
    assert pairs_of(torch.compile(net)).pairs.keys() == pairs_of(net).pairs.keys()
    assert pairs_of(nn.DataParallel(net)).pairs.keys() == {"1"}


class Between(nn.Module):
    """An operation, a step that moves axes, and a norm."""

    def __init__(self, operation: nn.Module, step: Callable[[Tensor], Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.operation, self.step, self.norm = operation, step, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.step(self.operation(x)))


class OwnLayerNorm(nn.LayerNorm):
    """A layer norm over the channels of a feature map, as timm's LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LastAxisRmsNorm(nn.Module):
    """Scales the last axis, whatever that is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight


def shuffled(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 2, 3, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


TOKENS, MAP = (4, 6, 8), (4, 1, 8, 6)
EQUAL_COUNTS = {
    "batch norm over the tokens of a linear layer": (nn.Linear(8, 6), lambda x: x, nn.BatchNorm1d(6), TOKENS),
    "layer norm over space": (nn.Conv2d(1, 6, 1), lambda x: x, nn.LayerNorm(6), MAP),
    "layer norm over space, of its own class": (
        nn.Conv2d(1, 6, 1),
        lambda x: x.mT.transpose(1, 2),
        OwnLayerNorm(6),
        MAP,
    ),
    "root mean square over space": (nn.Conv2d(1, 6, 1), lambda x: x, LastAxisRmsNorm(6), MAP),
    "channel shuffle": (nn.Conv2d(1, 6, 1), shuffled, nn.BatchNorm2d(6), MAP),
    "transposed tokens": (nn.Linear(8, 6), lambda x: x.transpose(1, 2), nn.LayerNorm(6), TOKENS),
    "channels merged with space": (nn.Conv2d(1, 6, 1), lambda x: x.flatten(1), nn.LayerNorm(288), MAP),
}


@pytest.mark.parametrize(("operation", "step", "norm", "shape"), EQUAL_COUNTS.values(), ids=EQUAL_COUNTS.keys())
def test_equal_counts_alone_make_no_pair(
    operation: nn.Module, step: Callable[[Tensor], Tensor], norm: nn.Module, shape: tuple[int, ...]
) -> None:
    both = pairs_of(Between(operation, step, norm), torch.empty(shape))
    assert both.pairs == {}
    assert list(both.unpaired) == ["norm"]


def test_the_reason_names_both_axes() -> None:
    net = Between(nn.Linear(8, 6), lambda x: x, nn.BatchNorm1d(6))
    (reason,) = pairs_of(net, torch.empty(TOKENS)).unpaired.values()
    assert reason == "its gammas scale axis 1 of its input, and the kernels that it reads lie along axis 2"


FOLLOWED = {
    "tokens turned for a batch norm": (nn.Linear(8, 6), lambda x: x.transpose(1, 2), nn.BatchNorm1d(6), TOKENS),
    "tokens merged for a batch norm": (nn.Linear(8, 6), lambda x: x.reshape(-1, 6), nn.BatchNorm1d(6), TOKENS),
    "patches as tokens": (nn.Conv2d(1, 6, 2, 2), lambda x: x.flatten(2).mT, nn.LayerNorm(6), MAP),
    "layer norm of its own class": (nn.Conv2d(1, 6, 1), lambda x: x, OwnLayerNorm(6), MAP),
    "root mean square of tokens": (nn.Linear(8, 6), lambda x: x, LastAxisRmsNorm(6), TOKENS),
    "unbatched instance norm": (
        nn.Conv2d(1, 6, 1),
        lambda x: x.squeeze(0),
        nn.InstanceNorm2d(6, affine=True),
        (1, 1, 8, 6),
    ),
    "an axis more": (nn.Conv2d(1, 6, 1), lambda x: x.unsqueeze(2), nn.BatchNorm3d(6), MAP),
}


@pytest.mark.parametrize(("operation", "step", "norm", "shape"), FOLLOWED.values(), ids=FOLLOWED.keys())
def test_moved_axes_are_followed(
    operation: nn.Module, step: Callable[[Tensor], Tensor], norm: nn.Module, shape: tuple[int, ...]
) -> None:
    both = pairs_of(Between(operation, step, norm), torch.empty(shape))
    assert both.unpaired == {}
    assert list(both.pairs) == ["norm"]

"""Buffers that a forward moves come back bit for bit."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from layertune import frozen_statistics


def buffers(net: nn.Module) -> dict[str, tuple[int, bytes]]:
    return {name: (id(buffer), buffer.numpy().tobytes()) for name, buffer in net.named_buffers()}


def batch_norm_act() -> nn.Module:
    return importlib.import_module("timm.layers").BatchNormAct2d(3)


class Replacing(nn.Module):
    """Makes a new buffer where others write into the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x - self.mean[:, None, None]


NORMS = {
    "batch": lambda: nn.BatchNorm2d(3),
    "batch, cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "instance": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "timm": batch_norm_act,
    "spectral": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 3, 3)),
    "replacing": Replacing,
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS.keys())
def test_moving_buffers_come_back(make: Callable[[], nn.Module]):
    net = nn.Sequential(nn.Conv2d(3, 3, 3), make()).train()
    net(torch.randn(4, 3, 8, 8))
    before = buffers(net)
    with frozen_statistics(net):
        net(torch.randn(4, 3, 8, 8))
        assert {name: value for name, (_, value) in buffers(net).items()} != {
            name: value for name, (_, value) in before.items()
        }
    assert buffers(net) == before


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0,), ()])
def test_expanded_buffers(shape: tuple[int, ...]):
    net = nn.Module()
    net.register_buffer("moves", torch.zeros(1).expand(shape) if shape else torch.zeros(()))
    net.register_buffer("rows", torch.zeros(2, 1).expand(2, 3))
    net.register_buffer("plain", torch.zeros(2))
    before = buffers(net)
    with frozen_statistics(net):
        for buffer in net.buffers():
            buffer.as_strided((1,), (1,)).add_(1)
        net.rows = net.rows + 1
        assert net.plain.tolist() == [1, 0]
    assert buffers(net) == before


def run_and_stop(net: nn.Module) -> None:
    net(torch.randn(4, 3, 8, 8))
    raise RuntimeError("stop")


def test_also_on_an_exception():
    net = nn.BatchNorm2d(3)
    before = buffers(net)
    with pytest.raises(RuntimeError, match="stop"), frozen_statistics(net):
        run_and_stop(net)
    assert buffers(net) == before


def test_synchronised_norms():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)))
    before = buffers(net)
    with frozen_statistics(net):
        net[0].running_mean.add_(1)
        net[0].num_batches_tracked.add_(1)
    assert buffers(net) == before


def test_norms_in_eval_are_not_touched():
    net = nn.BatchNorm2d(3).eval()
    with frozen_statistics(net):
        net.running_mean.fill_(7)
    assert net.running_mean.tolist() == [7, 7, 7]


def test_batch_statistics_are_used_inside():
    net, x = nn.BatchNorm2d(3), 5 + torch.randn(4, 3, 8, 8)
    with frozen_statistics(net):
        inside = net(x)
    assert torch.equal(inside, net(x))


def test_a_backward_pass_may_come_after_the_block():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), Constant())
    with frozen_statistics(net):
        loss = net(torch.randn(4, 3, 8, 8)).pow(2).sum()
    loss.backward()
    assert net[0].weight.grad is not None


class Constant(nn.Module):
    """A buffer that backward needs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def test_a_network_without_buffers():
    with frozen_statistics(nn.Linear(2, 2)) as nothing:
        assert nothing is None

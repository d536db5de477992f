"""Gammas, training norms alone, and buffers that come back bit for bit."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from layertune import ModelError, frozen_statistics, gammas, norm_only


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


class OwnLayerNorm(nn.Module):
    """A host's class that derives from none of torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.gamma + self.beta


class WrappedBatchNorm(nn.Module):
    """Bears a norm's name and holds none of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.ones(2, 2))


def mixed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4),
        nn.GroupNorm(2, 4),
        WrappedBatchNorm(),
        OwnLayerNorm(4),
        nn.PReLU(),
        nn.Linear(4, 2),
    )


def test_gammas_are_copies_by_path() -> None:
    net = mixed()
    found = gammas(net)
    assert list(found) == ["1", "3", "4.inner", "5"]
    found["1"].zero_()
    assert net[1].weight.tolist() == [1.0] * 4
    assert not found["1"].requires_grad


def test_gammas_of_a_wrapped_network_have_the_same_names() -> None:
    net = mixed()
    names = list(gammas(net))
    assert list(gammas(torch.compile(net))) == names
    assert list(gammas(nn.DataParallel(net))) == names
    assert list(gammas(nn.SyncBatchNorm.convert_sync_batchnorm(net))) == names


@pytest.mark.parametrize("call", [gammas, norm_only])
def test_networks_without_gammas_are_refused(call: Callable[[nn.Module], object]) -> None:
    with pytest.raises(ModelError, match="Linear has no normalisation layer"):
        call(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"none of the 2 norms of Sequential.*'0'.*affine=True"):
        call(nn.Sequential(nn.InstanceNorm2d(2), nn.BatchNorm2d(2, affine=False)))


def trained_names(net: nn.Module) -> list[str]:
    return [name for name, parameter in net.named_parameters() if parameter.requires_grad]


def test_norm_only_trains_norms_and_nothing_else() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    net(torch.randn(4, 1, 8, 8)).sum().backward()  # gradients that are still there must not move anything
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with norm_only(net) as frozen:
        assert frozen.names == ("0.weight", "0.bias", "4.weight", "4.bias")
        for _ in range(3):
            optimizer.zero_grad(set_to_none=False)
            net(torch.randn(4, 1, 8, 8)).square().sum().backward()
            optimizer.step()
        assert {name for name, p in net.named_parameters() if p.grad is not None} == {"1.weight", "1.bias"}
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("1.")), name
    assert trained_names(net) == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]


def test_norm_only_leaves_what_was_frozen_frozen() -> None:
    net = mixed()
    net[0].bias.requires_grad_(False)
    net[1].bias.requires_grad_(False)
    handle = norm_only(net)
    assert "1.bias" not in trained_names(net)
    handle.undo()
    handle.undo()
    assert not net[0].bias.requires_grad
    assert net[0].weight.requires_grad


def test_norm_only_comes_back_on_an_exception() -> None:
    net = mixed()
    with pytest.raises(RuntimeError, match="stop"), norm_only(net):
        raise RuntimeError("stop")
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_norm_only_with_biases_and_a_head() -> None:
    net = mixed()
    of_norms = [f"{norm}.{key}" for norm in ("1", "3", "4.inner") for key in ("weight", "bias")]
    with norm_only(net, biases=True):
        assert set(trained_names(net)) == {*of_norms, "5.gamma", "5.beta", "0.bias", "7.bias"}
    with norm_only(net, head=["7.weight", "7.bias"]):
        assert set(trained_names(net)) == {*of_norms, "5.gamma", "5.beta", "7.weight", "7.bias"}
    with pytest.raises(ModelError, match=r"no parameter of Sequential: \['8.weight'\]"):
        norm_only(net, head=["8.weight"])


def test_norm_only_with_all_norms_frozen_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    net[1].requires_grad_(False)
    with pytest.raises(ModelError, match="frozen already"):
        norm_only(net)
    assert trained_names(net) == ["0.weight", "0.bias"]

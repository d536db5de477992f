"""A meta pass leaves gradients and nothing else."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layertune import MetaLR, meta_pass
from small_networks import SmallResNet
from small_runs import Plain, batch, layer_groups, network


class Noisy(nn.Module):
    """Draws from all three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.body = SmallResNet()
        self.drop = nn.Dropout()
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.masks.append(self.drop(torch.ones(64)))
        return self.body(x) * (1 + 0.1 * random.random()) + 0.1 * np.random.rand()  # noqa: NPY002


def losses(meta: bool) -> tuple[list[float], list[list[float]], dict[str, list[float]]]:
    """Three training steps from one seed, with or without a meta pass after each."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    net = Noisy()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = net(torch.randn(4, 1, 16, 16)).pow(2).sum()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
        if meta:
            with meta_pass(net):
                net(torch.randn(4, 1, 16, 16)).sum().backward()
    masks = net.masks[:: 2 if meta else 1]
    return values, [mask.tolist() for mask in masks], {n: b.flatten().tolist() for n, b in net.named_buffers()}


def test_training_is_bit_identical_with_and_without_meta_passes():
    assert losses(meta=True) == losses(meta=False)


def test_a_meta_pass_does_not_see_the_masks_of_the_next_step():
    net = Noisy()
    with meta_pass(net):
        net(torch.randn(4, 1, 16, 16))
    net(torch.randn(4, 1, 16, 16))
    assert not torch.equal(*net.masks)


def test_two_meta_passes_from_one_state_are_alike():
    net = Noisy()
    state = torch.get_rng_state()
    for _ in range(2):
        torch.set_rng_state(state)
        with meta_pass(net):
            net(torch.randn(4, 1, 16, 16))
    assert torch.equal(*net.masks)


def test_gradients_stay():
    net = nn.Linear(2, 1)
    with meta_pass(net):
        net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad.tolist() == [[1, 1]]


def run_and_stop(net: nn.Module) -> None:
    net(torch.randn(8, 2)), np.random.rand(), random.random()  # noqa: NPY002
    raise RuntimeError("stop")


def test_everything_comes_back_on_an_exception():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    states = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    with pytest.raises(RuntimeError, match="stop"), meta_pass(net):
        run_and_stop(net)
    assert (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()) == states  # noqa: NPY002
    assert net[0].num_batches_tracked.item() == 0
    assert net[0].running_mean.tolist() == [0, 0]


def test_no_other_devices_generator_is_seeded(monkeypatch: pytest.MonkeyPatch):
    """`torch.manual_seed` would seed every CUDA device, also those where the host draws its augmentations."""

    def refuse(seed: int) -> None:
        raise AssertionError(f"seeded all devices with {seed}")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    net = nn.Linear(2, 1)
    with meta_pass(net):
        net(torch.ones(1, 2))


def drawn_in_meta_passes(steps: int, start: dict | None = None) -> tuple[list[float], dict]:
    """What all three generators give in the meta pass of each step, where training itself draws nothing."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    net = network()
    optimizer = torch.optim.SGD(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=0.02)
    if start is not None:
        net.load_state_dict(start["net"])
        optimizer.load_state_dict(start["optimizer"])
    drawn = []
    for number in range(steps):
        optimizer.zero_grad()
        Plain().step(net, optimizer, batch(number))
        optimizer.zero_grad()
        with meta_pass(net):
            Plain().backward(net, batch(500 + number))
            drawn += [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002
        metalr.adapt()
    return drawn, {"net": net.state_dict(), "optimizer": optimizer.state_dict()}


def test_each_meta_pass_draws_new_random_numbers():
    drawn, _ = drawn_in_meta_passes(6)
    assert len(set(drawn)) == 18
    assert drawn == drawn_in_meta_passes(6)[0]


def test_a_resumed_run_draws_what_the_uninterrupted_one_does():
    drawn, _ = drawn_in_meta_passes(6)
    first, state = drawn_in_meta_passes(2)
    rest, _ = drawn_in_meta_passes(4, start=copy.deepcopy(state))
    assert first + rest == drawn


def test_two_meta_passes_of_one_step_draw_different_numbers():
    net = network()
    MetaLR(torch.optim.SGD(layer_groups(net), lr=0.1))
    drawn = []
    for _ in range(2):
        with meta_pass(net):
            drawn.append(torch.rand(()).item())
    assert drawn[0] != drawn[1]

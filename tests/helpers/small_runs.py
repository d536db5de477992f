"""Small training runs that several tests share, in a module that child processes can import."""

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW, Optimizer

from layertune import MetaLR, meta_pass

Batch = tuple[Tensor, Tensor]

EVERY_RULE = [
    pytest.param({"rule": rule, **mode}, id=f"{rule} {name}")
    for rule in ("joint", "free")
    for name, mode in (("exact", {}), ("streaming", {"streaming": True}))
]
"""A rule that corrects each layer's step, and the one that learns a single factor, in both modes."""


def network(seed: int = 0, dtype: torch.dtype = torch.float64, out: int = 2) -> nn.Sequential:
    """Build three linear layers, with sizes that two processes cannot share evenly."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, out)).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def layer_groups(net: nn.Module, lr: float | Tensor = 0.05) -> list[dict[str, Any]]:
    """Return one param group for each child that has parameters."""
    return [
        {"params": list(child.parameters()), "layer": name, "lr": lr}
        for name, child in net.named_children()
        if list(child.parameters())
    ]


def batch(number: int, dtype: torch.dtype = torch.float64, out: int = 2, size: int = 8) -> Batch:
    """Return the batch of this number, the same in every run and process."""
    generator = torch.Generator().manual_seed(1000 + number)
    x, y = (torch.randn(size, width, generator=generator, dtype=torch.float64) for width in (4, out))
    return x.to(dtype), y.to(dtype)


def data(steps: Iterable[int], **options: Any) -> list[tuple[Batch, Batch]]:
    """Return a training batch and a meta batch for each step."""
    return [(batch(step, **options), batch(500 + step, **options)) for step in steps]


class Plain:
    """Step as a plain loop does: no scaling, no clipping, one batch a step. Subclasses override what differs."""

    scale = 1.0

    def backward(self, net: nn.Module, batch: Batch) -> None:
        x, y = batch
        (self.scale * mse_loss(net(x), y)).backward()

    def step(self, net: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
        self.backward(net, batch)
        optimizer.step()

    def adapt(self, metalr: MetaLR) -> None:
        metalr.adapt(self.scale)


class Run(NamedTuple):
    """Hold the weights, rates and history that a run ends with."""

    weights: list[Tensor]
    lrs: list[float]
    history: list[tuple[int, dict[str, float]]]


def train(
    net: nn.Module,
    optimizer: Optimizer,
    metalr: MetaLR | None,
    batches: Sequence[tuple[Batch, Batch]],
    loop: Plain | None = None,
    after: Callable[[], object] = lambda: None,
) -> Run:
    """Train as a host does: make each step and, where MetaLR asks for it, a meta pass."""
    loop = loop or Plain()
    for training, meta in batches:
        optimizer.zero_grad()
        loop.step(net, optimizer, training)
        if metalr and metalr.due and not metalr.streaming:
            optimizer.zero_grad()
            with meta_pass(net):
                loop.backward(net, meta)
            loop.adapt(metalr)
        after()
    return result(net, metalr)


def result(net: nn.Module, metalr: MetaLR | None) -> Run:
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    return Run(weights, list(metalr.lrs.values()) if metalr else [], metalr.history if metalr else [])


def run(
    steps: int = 6,
    *,
    make: Callable[..., Optimizer] = SGD,
    options: dict[str, Any] | None = None,
    loop: Plain | None = None,
    dtype: torch.dtype = torch.float64,
    lr: float | Tensor = 0.05,
    **settings: Any,
) -> Run:
    """Make a whole run with MetaLR, by the rule "joint" unless another is given."""
    net = network(dtype=dtype)
    optimizer = make(layer_groups(net, lr), **({"momentum": 0.9} if options is None else options))
    metalr = MetaLR(optimizer, **({"hyper_lr": 0.02, "rule": "joint"} | settings))
    return train(net, optimizer, metalr, data(range(steps), dtype=dtype), loop)


def assert_same(one: Run, other: Run, tolerance: float = 0.0) -> None:
    """Check that rates, history and weights are equal, bit for bit where no tolerance is given."""
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(torch.tensor(one.lrs), torch.tensor(other.lrs), **close)
    torch.testing.assert_close(one.weights, other.weights, **close)
    assert [step for step, _ in one.history] == [step for step, _ in other.history]
    for (_, rates), (_, others) in zip(one.history, other.history, strict=True):
        assert list(rates) == list(others)
        torch.testing.assert_close(torch.tensor(list(rates.values())), torch.tensor(list(others.values())), **close)


def assert_learned(one: Run, lr: float = 0.05) -> None:
    """Check that the rates have moved, apart from each other; with one factor for all, that it has moved each time."""
    if len(set(one.lrs)) == 1:
        assert len({next(iter(rates.values())) for _, rates in one.history}) == len(one.history) > 2
        return
    assert len({round(rate, 6) for rate in one.lrs}) == len(one.lrs)
    assert all(abs(rate / lr - 1) > 0.01 for rate in one.lrs)


def save(path: Path, net: nn.Module, optimizer: Optimizer) -> None:
    """Save a checkpoint that is whole at any moment: it is written beside, then put in place."""
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load(path: Path, net: nn.Module, optimizer: Optimizer) -> None:
    checkpoint = torch.load(path, weights_only=True)
    net.load_state_dict(checkpoint["net"])
    optimizer.load_state_dict(checkpoint["optimizer"])


def train_until_killed(folder: str, steps: int, settings: dict[str, Any], killed: tuple[int, str] | None) -> None:
    """Train on from the last checkpoint with one at each step, and die of SIGKILL at the given step and moment.

    Args:
        folder: The folder of the checkpoint and of the result.
        steps: The number of steps of the whole run.
        settings: The settings of MetaLR.
        killed: The step to die in, and the moment: ``"in step"`` (before the meta pass), ``"in save"`` (a half-written
            file), or ``"after"``. ``None`` lets the run come to its end.
    """
    torch.set_num_threads(1)

    def die(step: int, moment: str) -> None:
        if killed == (step, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    class Mortal(Plain):
        def step(self, net: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
            super().step(net, optimizer, batch)
            die(metalr.steps, "in step")

    def checkpoint() -> None:
        if killed == (metalr.steps, "in save"):
            path.with_suffix(".part").write_bytes(path.read_bytes()[:100] if path.exists() else b"half")
            die(metalr.steps, "in save")
        save(path, net, optimizer)
        die(metalr.steps, "after")

    path = Path(folder) / "checkpoint.pt"
    net = network(dtype=torch.float32)
    optimizer = AdamW(layer_groups(net), lr=0.05)
    metalr = MetaLR(optimizer, hyper_lr=2e-3, **settings)
    if path.exists():
        load(path, net, optimizer)
    ended = train(net, optimizer, metalr, data(range(metalr.steps, steps), dtype=torch.float32), Mortal(), checkpoint)
    torch.save(tuple(ended), Path(folder) / "result.pt")

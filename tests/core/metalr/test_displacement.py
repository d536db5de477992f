"""The measured step keeps its digits: compared with a float64 reference at small learning rates and in few bits."""

import copy

import pytest
import torch
from torch import Tensor, nn

from layertune import MetaLR
from reference import ReferenceMetaLR

LAYERS = {name: [f"{name}.weight", f"{name}.bias"] for name in ("0", "2", "4")}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.05}),
}
STEPS = 15


def network() -> nn.Module:
    """Three layers whose weights are float32 numbers, held in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    return net.double()


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (16, 6), (16, 2)
    return [tuple(torch.randn(s, generator=generator).double() for s in shapes) for _ in range(STEPS)]


def attach(net: nn.Module, optimizer: str, lr: float, *, cut: bool, **settings) -> MetaLR:
    kind, options = OPTIMIZERS[optimizer]
    settings = {"rule": "joint", "min_lr": 0.0} | settings
    parameters = dict(net.named_parameters())
    layers = {layer: [parameters[name] for name in names] for layer, names in LAYERS.items()}
    if cut:
        return MetaLR(kind(net.parameters(), lr=lr, **options), layers=layers, **settings)
    groups = [{"params": held, "layer": layer} for layer, held in layers.items()]
    return MetaLR(kind(groups, lr=lr, **options), **settings)


def train(net: nn.Module, metalr: MetaLR) -> None:
    dtype = next(net.parameters()).dtype
    for training, meta in zip(batches(1), batches(2), strict=True):
        for number, (x, y) in enumerate((training, meta)):
            if number == 0 or (metalr.due and not metalr.streaming):
                metalr.optimizer.zero_grad()
                nn.functional.mse_loss(net(x.to(dtype)), y.to(dtype)).backward()
                metalr.optimizer.step() if number == 0 else metalr.adapt()


def reference(net: nn.Module, optimizer: str, lr: float, *, streaming: bool, eta: float) -> ReferenceMetaLR:
    _, options = OPTIMIZERS[optimizer]
    lrs = dict.fromkeys(LAYERS, lr)
    slow = ReferenceMetaLR(net, LAYERS, lr=lrs, direction=optimizer, eta=eta, rule="joint", min_lr=0.0, **options)
    for training, meta in zip(batches(1), batches(2), strict=True):
        slow.streaming_step(training) if streaming else slow.step(training, meta)
    return slow


def error(net: nn.Module, slow: ReferenceMetaLR, start: nn.Module) -> float:
    """How far the weights' movement differs from that of the reference, relative to it."""
    before = {name: parameter.detach() for name, parameter in start.named_parameters()}
    moved = torch.cat([(p.detach().double() - before[name]).flatten() for name, p in net.named_parameters()])
    expected = torch.cat([(slow.weights[name] - before[name]).flatten() for name in before])
    return float((moved - expected).norm() / expected.norm())


@pytest.mark.parametrize("lr", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("cut", [False, True], ids=["groups", "layers="])
@pytest.mark.parametrize("streaming", [False, True], ids=["exact", "streaming"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float32_learns_the_rates_of_float64_and_moves_as_the_plain_optimizer(
    optimizer: str, streaming: bool, cut: bool, lr: float
) -> None:
    start = network()
    slow = reference(start, optimizer, lr, streaming=streaming, eta=0.03)
    still = reference(start, optimizer, lr, streaming=streaming, eta=0.0)
    net, plain = copy.deepcopy(start).float(), copy.deepcopy(start).float()
    metalr = attach(net, optimizer, lr, cut=cut, hyper_lr=0.03, streaming=streaming)
    train(net, metalr)
    train(plain, attach(plain, optimizer, lr, cut=cut, hyper_lr=0.0, streaming=streaming))
    assert min(metalr.lrs.values()) > 1.2 * lr, "the rates did not move, so the comparison shows nothing"
    for layer, rate in metalr.lrs.items():
        assert rate == pytest.approx(slow.alpha[layer].item(), rel=1e-5)
    assert error(net, slow, start) < max(0.01, error(plain, still, start))


@pytest.mark.parametrize("lr", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("cut", [False, True], ids=["groups", "layers="])
@pytest.mark.parametrize("streaming", [False, True], ids=["exact", "streaming"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bfloat16_learns_the_rates_of_float64_and_moves_no_worse_than_the_plain_optimizer(
    optimizer: str, streaming: bool, cut: bool, lr: float
) -> None:
    start = network().bfloat16().double()
    slow = reference(start, optimizer, lr, streaming=streaming, eta=0.03)
    still = reference(start, optimizer, lr, streaming=streaming, eta=0.0)
    net, plain = copy.deepcopy(start).bfloat16(), copy.deepcopy(start).bfloat16()
    metalr = attach(net, optimizer, lr, cut=cut, hyper_lr=0.03, streaming=streaming)
    train(net, metalr)
    train(plain, attach(plain, optimizer, lr, cut=cut, hyper_lr=0.0, streaming=streaming))
    for layer, rate in metalr.lrs.items():
        assert rate == pytest.approx(slow.alpha[layer].item(), rel=0.06)
    assert error(net, slow, start) <= error(plain, still, start)


def test_float16_weights_do_not_overflow() -> None:
    start = network().half().double()
    slow = reference(start, "sgd", 1e-2, streaming=False, eta=0.03)
    net = copy.deepcopy(start).half()
    metalr = attach(net, "sgd", 1e-2, cut=True, hyper_lr=0.03)
    train(net, metalr)
    for layer, rate in metalr.lrs.items():
        assert rate == pytest.approx(slow.alpha[layer].item(), rel=0.02)
    assert error(net, slow, start) < 0.05


@pytest.mark.parametrize("rule", ["joint", "free"])
def test_a_step_that_raises_leaves_the_weights_untouched(rule: str) -> None:
    class FailsLate(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            super().step(closure)
            if self.fails:
                raise KeyboardInterrupt

    net = network().float()
    groups = [{"params": child.parameters(), "layer": name} for name, child in net.named_children() if name in LAYERS]
    optimizer = FailsLate(groups, lr=0.01)
    MetaLR(optimizer, rule=rule, streaming=True)
    x, y = (value.float() for value in batches(1)[0])
    for fails in (False, True):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        before = copy.deepcopy(net.state_dict())
        optimizer.fails = fails
        if fails:
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
        else:
            optimizer.step()
    # The streaming correction of the step before is made; the step that raised is not.
    moved = [(net.state_dict()[name] - before[name]).norm() for name in before]
    assert max(moved) < 0.1
    assert all(parameter.grad is not None for parameter in net.parameters())
    optimizer.fails = False
    optimizer.step()

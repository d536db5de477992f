"""Random networks, optimizers, rules and layers against the slow float64 reference."""

import copy
import itertools
import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from layertune import MetaLR
from reference import ReferenceMetaLR

pytestmark = pytest.mark.slow

NETWORKS, PARTS, STEPS = 1000, 10, 4
OPTIMIZERS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "sgd": (torch.optim.SGD, [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}]),
    "adam": (torch.optim.Adam, [{}, {"weight_decay": 0.1}]),
    "adamw": (torch.optim.AdamW, [{"weight_decay": 0.1}, {"betas": (0.8, 0.95)}]),
}
SETTINGS: list[dict[str, Any]] = [
    {"rule": "joint", "eta": 0.05},
    {"rule": "cosine", "eta": 0.3},
    {"rule": "cosine", "eta": 0.5, "max_change": 1.2},
    {"rule": "proportional", "eta": 0.1},
]


class Case(NamedTuple):
    """One random run.

    Attributes:
        net: The network, in float64, with weights that are float32 numbers.
        layer_of: The layer of each parameter.
        groups: Names of the parameters of each param group with its learning rate. Some are frozen.
        cut: Whether layers are given by their parameters, and cut the groups.
    """

    net: nn.Module
    layer_of: dict[str, str]
    groups: list[tuple[list[str], float]]
    cut: bool
    streaming: bool
    optimizer: str
    options: dict[str, Any]
    settings: dict[str, Any]
    batches: list[tuple[Tensor, Tensor]]


def draw_network(drawn: random.Random) -> nn.Module:
    widths = [4, *(drawn.randint(2, 7) for _ in range(drawn.randint(1, 4))), 3]
    parts: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        parts.append(nn.Linear(width, following, bias=drawn.random() < 0.8))
        parts += [nn.LayerNorm(following)] if drawn.random() < 0.3 else []
        parts.append(drawn.choice([nn.Tanh, nn.GELU, nn.SiLU])())
    return nn.Sequential(*parts[:-1]).double()


def draw(seed: int) -> Case:
    drawn = random.Random(seed)
    torch.manual_seed(seed)
    net = draw_network(drawn)
    net.load_state_dict({name: value.float() for name, value in net.state_dict().items()})
    names = [name for name, _ in net.named_parameters()]
    count = drawn.randint(2, max(2, len(names) // 2))
    layer_of = {name: f"layer {i if i < count else drawn.randrange(count)}" for i, name in enumerate(names)}
    for name in drawn.sample(names[2:], drawn.randint(0, len(names[2:]) // 2)):
        net.get_parameter(name).requires_grad_(False)
    cut, lr = drawn.random() < 0.5, 10 ** drawn.uniform(-7, -1.5)
    rates = [lr * drawn.choice([1.0, 1.0, 0.1, 3.0]) for _ in range(drawn.randint(1, 3))]
    places = {name: (layer_of[name] if not cut else "", drawn.randrange(len(rates))) for name in names}
    groups = [
        ([name for name in names if places[name] == place], rates[place[1]]) for place in sorted(set(places.values()))
    ]
    optimizer = drawn.choice(list(OPTIMIZERS))
    generator = torch.Generator().manual_seed(seed)
    batches = [tuple(torch.randn(6, n, generator=generator).double() for n in (4, 3)) for _ in range(2 * STEPS)]
    options, settings = drawn.choice(OPTIMIZERS[optimizer][1]), drawn.choice(SETTINGS)
    return Case(net, layer_of, groups, cut, drawn.random() < 0.5, optimizer, options, settings, batches)


def slow_run(case: Case, eta: float | None = None) -> ReferenceMetaLR:
    rate_of = {name: rate for held, rate in case.groups for name in held}
    trained = [name for held, _ in case.groups for name in held if case.net.get_parameter(name).requires_grad]
    layers: dict[str, list[str]] = {}
    for name in trained:
        layers.setdefault(case.layer_of[name], []).append(name)
    lr = {layer: rate_of[names[0]] for layer, names in layers.items()}
    ratio = {name: rate_of[name] / lr[case.layer_of[name]] for name in trained}
    settings = case.settings if eta is None else case.settings | {"eta": eta}
    settings = {"lr": lr, "ratio": ratio, "direction": case.optimizer, "min_lr": 0.0, **case.options, **settings}
    slow = ReferenceMetaLR(case.net, layers, **settings)
    for training, meta in zip(case.batches[::2], case.batches[1::2], strict=True):
        slow.streaming_step(training) if case.streaming else slow.step(training, meta)
    return slow


def fast_run(case: Case, dtype: torch.dtype, eta: float | None = None) -> tuple[nn.Module, MetaLR]:
    net = copy.deepcopy(case.net).to(dtype)
    settings = {key: value for key, value in case.settings.items() if key != "eta"}
    settings |= {"hyper_lr": case.settings["eta"] if eta is None else eta, "min_lr": 0.0, "streaming": case.streaming}
    groups, layers = [], {}
    for names, rate in case.groups:
        own = {} if case.cut else {"layer": case.layer_of[names[0]]}
        groups.append({"params": [net.get_parameter(name) for name in names], "lr": rate, **own})
    for name, layer in case.layer_of.items():
        layers.setdefault(layer, []).append(net.get_parameter(name))
    optimizer = OPTIMIZERS[case.optimizer][0](groups, **case.options)
    metalr = MetaLR(optimizer, layers=layers if case.cut else None, **settings)
    for training, meta in zip(case.batches[::2], case.batches[1::2], strict=True):
        for number, (x, y) in enumerate((training, meta)):
            if number == 0 or (metalr.due and not case.streaming):
                optimizer.zero_grad()
                nn.functional.mse_loss(net(x.to(dtype)), y.to(dtype)).backward()
                optimizer.step() if number == 0 else metalr.adapt()
    return net, metalr


def error(case: Case, net: nn.Module, slow: ReferenceMetaLR) -> float:
    """How far the weights' movement differs from that of the reference, relative to it."""
    start = {name: parameter.detach() for name, parameter in case.net.named_parameters()}
    end, expected = {name: p.detach().double() for name, p in net.named_parameters()}, slow.weights
    moved = torch.cat([(end[name] - start[name]).flatten() for name in expected])
    wanted = torch.cat([(expected[name] - start[name]).flatten() for name in expected])
    return float((moved - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("part", range(PARTS))
def test_random_runs_equal_the_reference(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layertune.metalr.requirements.require_linear_step", lambda _: None)  # all three are linear
    learned = 0
    for seed in range(part, NETWORKS, PARTS):
        case = draw(seed)
        slow = slow_run(case)
        dtype = torch.float64 if drawn_even(seed) else torch.float32
        net, metalr = fast_run(case, dtype)
        close = 1e-6 if dtype is torch.float64 else 1e-2
        for layer, rate in metalr.lrs.items():
            if layer in slow.alpha:
                assert rate == pytest.approx(slow.alpha[layer].item(), rel=close), (seed, layer)
                learned += abs(metalr.history[-1][1][layer] / metalr.history[0][1][layer] - 1) > 1e-3
            else:  # frozen as a whole
                assert rate in [rate for _, rate in case.groups], (seed, layer)
        off = error(case, net, slow)
        if off > close:  # then the plain optimizer must be so far off, at rates that were not lowered
            plain, _ = fast_run(case, dtype, eta=0.0)
            assert off <= 2 * error(case, plain, slow_run(case, eta=0.0)), seed
    assert learned > NETWORKS / PARTS, "the rates did not move, so the comparison shows nothing"


def drawn_even(seed: int) -> bool:
    return seed // PARTS % 2 == 0

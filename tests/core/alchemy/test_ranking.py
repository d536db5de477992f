"""Ranking checkpoints: what is trained, for how long, and whether it names the best."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from layertune import AlchemyError, ModelError, WeightsError, rank_checkpoints, rank_correlation


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))


class Bias:
    """Calls it good what has a high bias in its first layer, and counts what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, int]] = []
        self.trained: set[tuple[str, ...]] = set()
        self.draws: list[float] = []

    def train(self, net: nn.Module, budget: int) -> None:
        self.calls.append((self.metric(net), budget))
        self.trained.add(tuple(name for name, p in net.named_parameters() if p.requires_grad))
        self.draws.append(torch.rand(()).item())
        with torch.no_grad():
            net[1].weight += budget

    def metric(self, net: nn.Module) -> float:
        return round(net[0].bias[0].item(), 3)


def states(values: dict[str, float]) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, value in values.items():
        net = network()
        nn.init.constant_(net[0].bias, value)
        found[name] = net.state_dict()
    return found


SIX = {"a": 0.1, "b": 0.6, "c": 0.3, "d": 0.5, "e": 0.2, "f": 0.4}


def test_each_gets_the_same_budget_and_the_same_random_numbers() -> None:
    task, net = Bias(), network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ranking = rank_checkpoints(states(SIX), net, task.train, task.metric, budget=7)
    assert ranking.names == ["b", "d", "f", "c", "e", "a"]
    assert task.calls == [(value, 7) for value in SIX.values()]
    assert len(set(task.draws)) == 1
    assert task.trained == {("1.weight", "1.bias")}
    assert ranking.spent == 42
    assert (ranking.full_budget, ranking.full_seconds) == (None, None)
    assert ranking.candidates[0].metric == 0.6
    assert ranking.candidates[0].loaded.missing == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_random_state_is_left_alone() -> None:
    task, given_states = Bias(), states(SIX)
    before = torch.get_rng_state()
    rank_checkpoints(given_states, network_at(0), task.train, task.metric, budget=1)
    assert torch.equal(torch.get_rng_state(), before)


def network_at(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network()


def test_halving_trains_the_better_half_on() -> None:
    task, gammas = Bias(), []

    def train(net: nn.Module, budget: int) -> None:
        gammas.append(net[1].weight[0].item())
        task.train(net, budget)

    ranking = rank_checkpoints(states(SIX), network(), train, task.metric, budget=2, halving=2)
    assert [budget for _, budget in task.calls] == [2] * 6 + [4] * 3 + [8] * 2
    assert [value for value, _ in task.calls[6:]] == [0.6, 0.5, 0.4, 0.6, 0.5]
    assert gammas == [1.0] * 6 + [3.0] * 3 + [7.0] * 2, "what was learned is kept from round to round"
    assert ranking.names == ["b", "d", "f", "c", "e", "a"]
    assert [candidate.rounds for candidate in ranking.candidates] == [3, 3, 2, 1, 1, 1]
    assert [candidate.spent for candidate in ranking.candidates] == [14, 14, 6, 2, 2, 2]
    assert ranking.spent == 40


def test_halving_stops_where_it_may() -> None:
    task = Bias()
    ranking = rank_checkpoints(states(SIX), network(), task.train, task.metric, budget=2, halving=3, keep=2)
    assert ranking.spent == 12, "the first round leaves the two that are to be kept"
    assert ranking.names[:2] == ["b", "d"]


def test_a_loss_and_a_metric_that_is_no_number() -> None:
    task = Bias()

    def metric(net: nn.Module) -> float:
        return math.nan if task.metric(net) == 0.7 else task.metric(net)

    values = {**SIX, "g": 0.7}
    ranking = rank_checkpoints(states(values), network(), task.train, metric, budget=1, higher_is_better=False)
    assert ranking.names == ["a", "e", "c", "f", "d", "b", "g"]
    assert math.isnan(ranking.candidates[-1].metric)


def test_a_checkpoint_that_holds_nan_is_named() -> None:
    task = Bias()
    with pytest.raises(WeightsError, match=r"g: the weights hold NaN or infinite values in 0\.bias"):
        rank_checkpoints(states({**SIX, "g": math.nan}), network(), task.train, task.metric, budget=1)


def test_random_numbers_of_python_are_the_same_for_all() -> None:
    draws = []

    def train(_: nn.Module, __: int) -> None:
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002

    before = random.getstate()
    rank_checkpoints(states(SIX), network(), train, Bias().metric, budget=1)
    assert len(set(draws)) == 1
    assert random.getstate() == before


class Remembering(nn.Module):
    """A network with a buffer that no state dict holds, one that grows, and an attribute, all changed by a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("passes", torch.zeros(()), persistent=False)
        self.register_buffer("seen", torch.zeros(0), persistent=False)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen = torch.cat([self.seen, x.detach().flatten()[:1]])
        self.count += 1
        return self.norm(x)


def test_nothing_leaks_from_one_checkpoint_to_the_next() -> None:
    net, starts = Remembering(), []

    def train(net: nn.Module, budget: int) -> None:
        starts.append((int(net.passes), len(net.seen), net.count))
        for _ in range(budget):
            net(torch.randn(4, 2))

    given_states = {name: Remembering().state_dict() for name in "abc"}
    rank_checkpoints(given_states, net, train, lambda net: net.norm.weight[0].item(), budget=3)
    assert starts == [(0, 0, 0)] * 3
    assert (int(net.passes), len(net.seen), net.count) == (0, 0, 0)
    starts.clear()
    rank_checkpoints(given_states, net, train, lambda net: net.norm.weight[0].item(), budget=1, halving=2, keep=1)
    assert starts == [(0, 0, 0)] * 3 + [(1, 1, 0)] * 2, "buffers are learned, and kept from round to round"


def test_a_replaced_parameter_is_measured_and_then_put_back() -> None:
    net = network()
    norm, weight = net[1], net[1].weight

    def train(net: nn.Module, _: int) -> None:
        net[1].weight = nn.Parameter(torch.full((4,), 7.0))

    ranking = rank_checkpoints(states(SIX), net, train, lambda net: net[1].weight[0].item(), budget=1)
    assert [candidate.metric for candidate in ranking.candidates] == [7] * 6
    assert norm.weight is weight
    assert bool((weight == 1).all())


def test_networks_that_cannot_train_in_inference_mode_are_refused() -> None:
    task, given_states = Bias(), states(SIX)
    with torch.inference_mode():
        frozen = network()
        with pytest.raises(AlchemyError, match=r"under torch.inference_mode\(\), and its 0.weight was made there"):
            rank_checkpoints(given_states, frozen, task.train, task.metric, budget=1)
    with pytest.raises(AlchemyError, match=r"0\.weight was made there; leave the mode, and make the network outside"):
        rank_checkpoints(given_states, frozen, task.train, task.metric, budget=1)
    net = network()
    with torch.inference_mode(), pytest.raises(AlchemyError, match="this is called there"):
        rank_checkpoints(given_states, net, task.train, task.metric, budget=1)


def test_states_of_inference_mode_and_conjugate_buffers_are_ranked() -> None:
    with torch.inference_mode():
        given_states = states(SIX)
    net, task = network(), Bias()
    values = torch.tensor([1 + 2j])
    net.register_buffer("wave", values.conj())
    net.register_buffer("phase", values.conj().imag, persistent=False)
    ranking = rank_checkpoints(given_states, net, task.train, task.metric, budget=1, halving=2)
    assert ranking.names == ["b", "d", "f", "c", "e", "a"]
    assert net.wave.item() == 1 - 2j
    assert net.phase.item() == -2


def test_files(tmp_path: Path) -> None:
    task = Bias()
    paths = []
    for name, state in states(SIX).items():
        paths.append(tmp_path / f"{name}.pt")
        torch.save({"state_dict": state}, paths[-1])
    ranking = rank_checkpoints(paths, network(), task.train, task.metric, budget=1)
    assert ranking.names[:2] == ["b.pt", "d.pt"]
    (tmp_path / "other").mkdir()
    torch.save(states({"a": 2.0})["a"], tmp_path / "other" / "a.pt")
    twice = [tmp_path / "a.pt", tmp_path / "other" / "a.pt"]
    assert rank_checkpoints(twice, network(), task.train, task.metric, budget=1).names == [str(twice[1]), str(twice[0])]
    (tmp_path / "no.pt").write_text("nothing")
    with pytest.raises(WeightsError):
        rank_checkpoints([tmp_path / "no.pt"], network(), task.train, task.metric, budget=1)


def test_a_new_head_is_the_same_for_all() -> None:
    heads: list[Tensor] = []

    def train(net: nn.Module, _: int) -> None:
        heads.append(net[4].weight.detach().clone())

    net = network(classes=5)
    given_states = states(SIX)
    rank_checkpoints(given_states, net, train, Bias().metric, budget=1, head=["4.weight"])
    assert all(torch.equal(head, net[4].weight) for head in heads)


def test_time_is_held_against_full_training() -> None:
    task = Bias()
    ranking = rank_checkpoints(states(SIX), network(), task.train, task.metric, budget=2, full_budget=10)
    assert (ranking.spent, ranking.full_budget) == (12, 60)
    assert ranking.full_seconds is not None
    assert ranking.full_seconds > 0 < ranking.seconds
    assert task.calls[-1] == (0.1, 1)
    assert len(task.trained) == 2, "the timed unit trains all parameters"


def test_modules_keep_their_modes_and_no_gradient_is_left() -> None:
    net = network()
    net[1].eval()

    def train(net: nn.Module, _: int) -> None:
        net.train()
        net(torch.randn(2, 1, 8, 8)).sum().backward()

    rank_checkpoints(states(SIX), net, train, Bias().metric, budget=1, full_budget=1)
    assert [module.training for module in net] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_checkpoints_of_another_network() -> None:
    task, net = Bias(), network()
    other = nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.Linear(3, 3)).state_dict()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(AlchemyError, match="other is a checkpoint of another network than Sequential"):
        rank_checkpoints({**states(SIX), "other": other}, net, task.train, task.metric, budget=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_what_cannot_be_ranked() -> None:
    task = Bias()
    wrong = ({"halving": 1}, {"keep": 0}, {"full_budget": 0}, {"budget": 0}, {"budget": 1.5}, {"budget": math.inf})
    for settings in ({"budget": 1, **one} for one in wrong):
        with pytest.raises(AlchemyError, match="whole number"):
            rank_checkpoints(states(SIX), network(), task.train, task.metric, **settings)
    with pytest.raises(AlchemyError, match="no checkpoint"):
        rank_checkpoints([], network(), task.train, task.metric, budget=1)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3))
    with pytest.raises(ModelError, match="no normalisation layer"):
        rank_checkpoints({"a": plain.state_dict()}, plain, task.train, task.metric, budget=1)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=8))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(rank_correlation(first, second))
    else:
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-9)


def test_rank_correlation_of_table_4_3() -> None:
    """NSCLC-Radiomics."""
    assert rank_correlation([0.1254, 0.2809, 0.2291], [0.4854, 0.5129, 0.4969]) == 1
    with pytest.raises(AlchemyError, match="same number of values"):
        rank_correlation([1, 2], [1])
    with pytest.raises(AlchemyError, match="at least two"):
        rank_correlation([1], [1])


# Six checkpoints of known quality: a network that learned stripes, and the same with ever more noise in its kernels.
NOISE = {"none": 0.0, "little": 0.3, "some": 0.7, "much": 0.9, "nearly all": 0.97, "all": 1.0}
FULL, BUDGET, CASES, ANGLES = 90, 30, 24, 4
HEAD = ("11.weight", "11.bias")


def stripes(count: int, *, contrast: float) -> tuple[Tensor, Tensor]:
    """Noisy stripes in one of several directions; the contrast is what changes from source to target."""
    labels = torch.randint(ANGLES, (count,))
    angle = labels * torch.pi / ANGLES
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    phase = torch.rand(count, 1, 1) * 6.28
    waves = torch.sin((torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y) * 1.3 + phase)
    return (contrast * waves + torch.randn(count, 16, 16))[:, None], labels


def deep_network() -> nn.Module:
    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    blocks = [*block(1, 8, 1), *block(8, 16, 2), *block(16, 16, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, ANGLES))


class Stripes:
    """The target task; counts passes."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.train_set = stripes(CASES, contrast=-0.5)
            self.validation = stripes(512, contrast=-0.5)
        self.passes = 0

    def train(self, net: nn.Module, steps: int) -> None:
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        net.train()
        for _ in range(steps):
            chosen = torch.randint(CASES, (16,))
            optimizer.zero_grad()
            cross_entropy(net(self.train_set[0][chosen]), self.train_set[1][chosen]).backward()
            optimizer.step()
            self.passes += 1

    @torch.no_grad()
    def accuracy(self, net: nn.Module) -> float:
        net.eval()
        images, labels = self.validation
        return float((net(images).argmax(1) == labels).float().mean())


def checkpoints() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(1)
    net = deep_network()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(200):
        images, labels = stripes(32, contrast=1.0)
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
    found = {}
    for name, noise in NOISE.items():
        state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        for key in ("0.weight", "3.weight", "6.weight"):
            fresh = torch.randn_like(state[key]) * state[key].std()
            state[key] = (1 - noise) * state[key] + noise * fresh
        found[name] = {key: tensor for key, tensor in state.items() if key not in HEAD}
    return found


@pytest.mark.slow
def test_it_names_the_best_two_of_six_in_a_third_of_the_passes() -> None:
    task, net, given_states = Stripes(), deep_network(), checkpoints()
    ranking = rank_checkpoints(given_states, net, task.train, task.accuracy, budget=BUDGET, head=HEAD)
    assert set(ranking.names[:2]) == {"none", "little"}
    assert task.passes == ranking.spent == 6 * BUDGET
    assert 3 * task.passes <= 6 * FULL
    full = {}
    for name, state in given_states.items():
        tuned = deep_network()
        tuned.load_state_dict({**net.state_dict(), **state})
        torch.manual_seed(0)
        task.train(tuned, FULL)
        full[name] = task.accuracy(tuned)
    by_full = sorted(full, key=full.__getitem__, reverse=True)
    assert set(by_full[:2]) == {"none", "little"}, "fine-tuning all six names the same two"

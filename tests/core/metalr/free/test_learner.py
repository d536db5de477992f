"""Runs by the rule "free", against what is worked out by hand."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from layertune import LRProfile, MetaLR, OptimizerError
from layertune.metalr.free.learner import FARTHEST, START, FreeLearner
from small_runs import Batch, Plain, assert_same, batch, data, layer_groups, network, run, train

MODES = [pytest.param({}, id="exact"), pytest.param({"streaming": True}, id="streaming")]
OPTIMIZERS = [
    pytest.param(SGD, {"momentum": 0.9}, id="SGD"),
    pytest.param(AdamW, {"weight_decay": 0.05}, id="AdamW"),
]


def attach(net: nn.Module, make: type[Optimizer] = SGD, lr: float = 1.0, **settings: Any) -> MetaLR:
    """Attach to an optimizer whose parameters are in a single group."""
    options = {"momentum": 0.9} if make is SGD else {}
    return MetaLR(make(net.parameters(), lr=lr, **options), **settings)


def step(net: nn.Module, optimizer: Optimizer, drawn: Batch, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (scale * mse_loss(net(drawn[0]), drawn[1])).backward()
    optimizer.step()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def gradient(net: nn.Module, drawn: Batch) -> Tensor:
    grads = torch.autograd.grad(mse_loss(net(drawn[0]), drawn[1]), list(net.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def rates(metalr: MetaLR) -> list[float]:
    return [next(iter(row.values())) for _, row in metalr.history]


# The first step


@pytest.mark.parametrize("lr", [1e-6, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_the_first_step_moves_the_weights_by_its_share_of_their_length(
    make: type[Optimizer], options: dict[str, Any], dtype: torch.dtype, lr: float
) -> None:
    net = network(dtype=dtype)
    before = weights(net)
    optimizer = make(net.parameters(), lr=lr, **options)
    metalr = MetaLR(optimizer)
    step(net, optimizer, batch(0, dtype=dtype))
    assert float((weights(net) - before).norm() / before.norm()) == pytest.approx(START, rel=1e-4)
    twin = network(dtype=dtype)
    plain = make(twin.parameters(), lr=metalr.lrs["group 0"], **options)
    step(twin, plain, batch(0, dtype=dtype))
    torch.testing.assert_close(weights(net), weights(twin), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_a_run_is_the_same_from_any_learning_rate(make: type[Optimizer], options: dict[str, Any], mode: dict) -> None:
    runs = [run(30, make=make, options=options, lr=lr, rule="free", **mode) for lr in (1.0, 1e-6, 1e-3, 100.0)]
    for other in runs[1:]:
        assert_same(other, runs[0], 1e-7)
    assert len({next(iter(row.values())) for _, row in runs[0].history}) > 25


def test_the_learning_rates_of_groups_keep_their_ratio() -> None:
    net = network()
    groups = layer_groups(net)
    groups[2]["lr"] = 0.5
    metalr = MetaLR(SGD(groups, lr=0.05))
    train(net, metalr.optimizer, metalr, data(range(5)))
    lrs = metalr.lrs
    assert lrs["4"] == pytest.approx(10 * lrs["0"])
    assert lrs["2"] == lrs["0"]


def test_one_param_group_is_enough_and_an_older_rule_refuses_it() -> None:
    metalr = attach(network())
    assert list(metalr.lrs) == ["group 0"]
    metalr.detach()
    with pytest.raises(OptimizerError, match="all parameters in one layer"):
        MetaLR(metalr.optimizer, rule="joint")


def test_a_first_step_that_raises_leaves_the_weights_and_the_next_one_is_the_first() -> None:
    class FailsLate(SGD):
        fails = False

        def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # one form
            loss = super().step(closure)
            if self.fails:
                raise KeyboardInterrupt
            return loss

    net, twin = network(), network()
    optimizer = FailsLate(net.parameters(), lr=1.0)
    MetaLR(optimizer)
    optimizer.fails = True
    with pytest.raises(KeyboardInterrupt):
        step(net, optimizer, batch(0))
    torch.testing.assert_close(weights(net), weights(twin), rtol=0, atol=0)
    optimizer.fails = False
    step(net, optimizer, batch(0))
    metalr = MetaLR(SGD(twin.parameters(), lr=1.0))
    step(twin, metalr.optimizer, batch(0))
    torch.testing.assert_close(weights(net), weights(twin), rtol=0, atol=0)


def test_weights_that_are_all_zero_begin_as_large_as_usual_ones() -> None:
    net = nn.Linear(4, 2).double()
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    metalr = attach(net, streaming=True)
    for number in range(60):
        step(net, metalr.optimizer, batch(number))
    assert 0 < float(weights(net).norm()) < 1
    assert rates(metalr)[-1] > rates(metalr)[0]


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_step_without_a_usable_gradient_is_left_out_at_the_start(value: float) -> None:
    net = network()
    before = weights(net)
    metalr = MetaLR(SGD(net.parameters(), lr=1.0), streaming=True)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, value)
    for number in range(2):
        warned = value != 0 and number == 0
        with pytest.warns(RuntimeWarning, match="step 1 is not finite") if warned else nullcontext():
            metalr.optimizer.step()
    torch.testing.assert_close(weights(net), before, rtol=0, atol=0)
    step(net, metalr.optimizer, batch(0))
    assert float((weights(net) - before).norm() / before.norm()) == pytest.approx(START, rel=1e-6)


def test_the_first_step_respects_the_largest_rate() -> None:
    for max_lr in (None, 1e-6):
        net = network()
        metalr = attach(net, max_lr=max_lr)
        step(net, metalr.optimizer, batch(0))
        assert metalr.lrs["group 0"] > 1e-5 if max_lr is None else metalr.lrs["group 0"] == pytest.approx(1e-6)


# What it learns from


@pytest.mark.parametrize("streaming", [False, True], ids=["exact", "streaming"])
def test_the_cosine_is_that_of_the_gradient_and_the_weighted_sum_of_the_last_steps(
    streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    learn = FreeLearner._follow
    monkeypatch.setattr(
        "layertune.metalr.free.learner.FreeLearner._follow",
        lambda self, cosine, settings: (seen.append(cosine), learn(self, cosine, settings)),
    )
    net = network()
    metalr = attach(net, streaming=streaming)
    movement, expected = torch.zeros_like(weights(net)), []
    for number in range(15):
        if streaming and number:
            expected.append(cosine(-gradient(net, batch(number)), movement))
        before = weights(net)
        step(net, metalr.optimizer, batch(number))
        movement = 0.9 * movement + weights(net) - before
        if not streaming:
            expected.append(cosine(-gradient(net, batch(500 + number)), movement))
            metalr.optimizer.zero_grad()
            Plain().backward(net, batch(500 + number))
            metalr.adapt()
    assert seen == pytest.approx(expected, rel=1e-8)
    assert len(seen) == 15 - streaming


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_adapt_corrects_nothing_but_an_overshoot() -> None:
    net = network()
    metalr = attach(net)
    for number in range(15):
        step(net, metalr.optimizer, batch(number))
        before = weights(net)
        metalr.optimizer.zero_grad()
        Plain().backward(net, batch(500 + number))
        metalr.adapt()
        torch.testing.assert_close(weights(net), before, rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in net.parameters())


class Valley(nn.Module):
    """A quadratic loss, 0.5 |w|^2, whose gradient has a little noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50, dtype=torch.float64))
        self.noise = torch.Generator().manual_seed(0)

    def backward(self) -> None:
        noise = torch.randn(50, generator=self.noise, dtype=torch.float64)
        self.weight.grad = self.weight.detach() + 0.1 * noise


@pytest.mark.parametrize("streaming", [False, True], ids=["exact", "streaming"])
def test_a_gross_overshoot_is_taken_back_at_once(streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layertune.metalr.free.learner.FARTHEST", math.inf)  # nothing else limits the step
    net = Valley()
    metalr = MetaLR(SGD(net.parameters(), lr=1.0), streaming=streaming)

    def one_step() -> None:
        net.backward()
        metalr.optimizer.step()
        if not streaming:
            net.backward()
            metalr.adapt()

    for _ in range(30):
        one_step()
    rule = metalr._learner.rule  # type: ignore[attr-defined]  # of FreeLearner
    before, rate = float(net.weight.detach().norm()), math.exp(rule.log_rate)
    assert rule.overshoots == 0
    # From here on the valley is so steep that each step leaps over it.
    monkeypatch.setattr(net, "backward", lambda: setattr(net.weight, "grad", 1e4 * net.weight.detach().clone()))
    for _ in range(1 + streaming):
        net.backward()
        metalr.optimizer.step()
        if not streaming:
            assert float(net.weight.detach().norm()) > 2 * before
            net.backward()
            metalr.adapt()
            assert float(net.weight.detach().norm()) < 1.5 * before  # the average of the ten steps before
    assert rule.overshoots == 1
    assert math.exp(rule.log_rate) < 0.5 * rate


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_a_loss_that_is_scaled_in_mid_run_changes_nothing_with_adamw(scale: float, mode: dict) -> None:
    """Adam's eps aside, and the steps in which its moments get used to the new scale."""
    net = network()
    metalr = attach(net, AdamW, **mode)
    lengths, losses = [], []
    for number in range(120):
        before = weights(net)
        step(net, metalr.optimizer, batch(number % 4), 1.0 if number < 60 else scale)
        lengths.append(float((weights(net) - before).norm() / before.norm()))
        losses.append(mse_loss(net(batch(0)[0]), batch(0)[1]).item())
        if metalr.due and not metalr.streaming:
            metalr.optimizer.zero_grad()
            Plain().backward(net, batch(number % 4))
            metalr.adapt()
    assert max(losses) <= 1.1 * losses[0]
    assert max(lengths) < 2 * FARTHEST


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_scaled_by_a_constant_gives_the_same_run(mode: dict) -> None:
    class Scaled(Plain):
        scale = 1e4

    plain = run(20, rule="free", **mode)
    assert_same(
        run(20, rule="free", loop=Scaled(), **mode)._replace(lrs=[], history=[]),
        plain._replace(lrs=[], history=[]),
        1e-7,
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_movement_stays_within_its_share_of_the_weights(mode: dict) -> None:
    """The gradient always points the same way, so nothing else ever stops the rate."""
    weight = nn.Parameter(torch.full((20,), 0.5, dtype=torch.float64))
    metalr = MetaLR(SGD([weight], lr=1.0, momentum=0.9), **mode)
    length, movement = float(weight.detach().norm()), torch.zeros_like(weight.detach())
    longest = 0.0
    for _ in range(100):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        metalr.optimizer.step()
        movement = 0.9 * movement + weight.detach() - before
        longest = max(longest, float(movement.norm()))
        assert float(movement.norm()) <= FARTHEST * length * (1 + 1e-9)
        if not metalr.streaming:
            metalr.adapt()
    assert longest == pytest.approx(FARTHEST * length)


# Schedules


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "factors",
    [
        pytest.param([(step + 1) / 20 if step < 20 else 1.0 for step in range(60)], id="warm-up"),
        pytest.param([1e-3 if step < 29 else 1.0 for step in range(60)], id="whole epochs"),
        pytest.param([0.5 * (1 + math.cos(math.pi * (step % 20) / 20)) for step in range(60)], id="restarts"),
        pytest.param([0.0 if step % 5 == 4 or step < 2 else 1.0 for step in range(60)], id="steps at 0"),
        pytest.param([1e3 if step % 7 == 3 else 1e-3 for step in range(60)], id="jumps"),
    ],
)
def test_the_rate_grows_no_faster_than_its_bound_under_any_schedule(factors: Sequence[float], mode: dict) -> None:
    net = network()
    metalr = attach(net, **mode)
    scheduler = lr_scheduler.LambdaLR(metalr.optimizer, lambda number: factors[min(number, 59)])
    losses = []
    for number in range(60):
        before = weights(net)
        step(net, metalr.optimizer, batch(number % 8))
        losses.append(mse_loss(net(batch(0)[0]), batch(0)[1]).item())
        if not factors[number]:
            torch.testing.assert_close(weights(net), before, rtol=0, atol=0)
            assert not metalr.due
        if metalr.due and not metalr.streaming:
            metalr.optimizer.zero_grad()
            Plain().backward(net, batch(number % 8))
            metalr.adapt()
        scheduler.step()
    made = [rate for rate in rates(metalr) if rate]
    assert len(made) == sum(factor > 0 for factor in factors)
    for before_rate, rate in pairwise(made):
        assert rate <= math.exp(0.3) * max(before_rate, made[0]) * (1 + 1e-9)
    assert max(losses) < 1.5 * losses[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_under_a_schedule_equals_the_uninterrupted_one(mode: dict) -> None:
    """The level of the schedule is that of the step that waits, and not that of the next one."""

    def build() -> tuple[nn.Module, MetaLR, Any]:
        net = network()
        metalr = attach(net, **mode)
        return net, metalr, lr_scheduler.CosineAnnealingLR(metalr.optimizer, 20)

    net, metalr, scheduler = build()
    whole = train(net, metalr.optimizer, metalr, data(range(16)), after=scheduler.step)
    net, metalr, scheduler = build()
    train(net, metalr.optimizer, metalr, data(range(9)), after=scheduler.step)
    saved = copy.deepcopy((net.state_dict(), metalr.optimizer.state_dict(), scheduler.state_dict()))
    net, metalr, scheduler = build()
    net.load_state_dict(saved[0])
    metalr.optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    assert_same(train(net, metalr.optimizer, metalr, data(range(9, 16)), after=scheduler.step), whole)


def test_start_at_lr_makes_the_optimizers_own_first_step_and_rises_with_the_schedule() -> None:
    net, twin = network(), network()
    metalr = attach(net, lr=1e-4, start="lr")
    step(net, metalr.optimizer, batch(0))
    step(twin, SGD(twin.parameters(), lr=1e-4, momentum=0.9), batch(0))
    torch.testing.assert_close(weights(net), weights(twin), rtol=0, atol=0)
    metalr.optimizer.param_groups[0]["lr"] = 1.2e-4
    step(net, metalr.optimizer, batch(1))
    assert metalr.lrs["group 0"] == pytest.approx(1.2e-4)


def test_the_learned_rate_stays_within_its_limits() -> None:
    for limits in ({"max_lr": 1e-4}, {"min_lr": 0.5}):
        net = network()
        metalr = attach(net, streaming=True, **limits)
        for number in range(30):
            step(net, metalr.optimizer, batch(number % 4))
        assert all(rate <= limits.get("max_lr", math.inf) * (1 + 1e-9) for rate in rates(metalr))
        assert all(rate >= limits.get("min_lr", 0.0) * (1 - 1e-9) for rate in rates(metalr))


# What others do to the weights and gradients


@pytest.mark.parametrize("when", ["after the step", "after adapt()"])
@pytest.mark.parametrize("mode", MODES)
def test_weights_that_somebody_else_loads_are_not_pulled_back(mode: dict, when: str) -> None:
    net = network()
    metalr = attach(net, **mode)
    other = network(seed=1).state_dict()
    for number in range(12):
        step(net, metalr.optimizer, batch(number))
        if number == 8 and when == "after the step":
            net.load_state_dict(other)
        if not metalr.streaming:
            metalr.optimizer.zero_grad()
            Plain().backward(net, batch(500 + number))
            metalr.adapt()
        if number == 8 and when == "after adapt()":
            net.load_state_dict(other)
        if number >= 8:
            far = float((weights(net) - weights(network(seed=1))).norm() / weights(net).norm())
            assert far < FARTHEST * (number - 7)


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_are_clipped_after_each_step_still_teach_the_rate(mode: dict) -> None:
    net = network()
    metalr = attach(net, **mode)
    with torch.no_grad():
        for number in range(20):
            with torch.enable_grad():
                step(net, metalr.optimizer, batch(number))
                if not metalr.streaming:
                    metalr.optimizer.zero_grad()
                    Plain().backward(net, batch(number))
                    metalr.adapt()
            for parameter in net.parameters():
                parameter.mul_(1 - 1e-3)
    assert len(set(rates(metalr))) > 15


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_not_finite_is_counted_and_teaches_nothing(mode: dict) -> None:
    net = network()
    metalr = attach(net, **mode)
    for number in range(5):
        step(net, metalr.optimizer, batch(number))
        if not metalr.streaming:
            metalr.optimizer.zero_grad()
            Plain().backward(net, batch(number))
            metalr.adapt()
    step(net, metalr.optimizer, batch(5))
    rule = copy.copy(metalr._learner.rule)  # type: ignore[attr-defined]  # of FreeLearner
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    with pytest.warns(RuntimeWarning, match="the meta gradient was not finite"):
        metalr.optimizer.step() if metalr.streaming else metalr.adapt()
    assert metalr.skipped == 1
    after = metalr._learner.rule  # type: ignore[attr-defined]  # of FreeLearner
    assert (after.log_rate, after.count) == (rule.log_rate, rule.count)


def test_parameters_that_join_and_groups_without_a_gradient_are_no_harm() -> None:
    net = network()
    first, second, head = layer_groups(net)
    optimizer = SGD([second, head], momentum=0.9)
    metalr = MetaLR(optimizer, streaming=True)
    for number in range(30):
        if number == 10:
            optimizer.add_param_group(first)
        optimizer.zero_grad()
        Plain().backward(net, batch(number))
        if number < 20:
            for parameter in second["params"]:
                parameter.grad = None
        before = [parameter.detach().clone() for parameter in net.parameters()]
        optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
        assert moved == [number >= 10] * 2 + [number >= 20] * 2 + [True] * 2
    assert len(set(metalr.lrs.values())) == 1


# History, older runs, long runs


@pytest.mark.parametrize("mode", MODES)
def test_the_history_has_each_step_and_a_replay_is_right_from_the_first(
    mode: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layertune.metalr.free.learner.FARTHEST", math.inf)  # a replay shortens no step
    net = network()
    metalr = MetaLR(SGD(layer_groups(net, 1.0), momentum=0.9), **mode)
    train(net, metalr.optimizer, metalr, data(range(12)))
    assert [number for number, _ in metalr.history] == list(range(1, 13))
    twin = network()
    optimizer = SGD(layer_groups(twin, 1.0), momentum=0.9)
    profile: LRProfile = metalr.profile()
    with profile.replay(optimizer):
        train(twin, optimizer, None, data(range(12)))
    torch.testing.assert_close(weights(twin), weights(net), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("first", ["load", "attach"])
@pytest.mark.parametrize("old", ["joint", "cosine", "version 0.1"])
def test_a_run_of_another_rule_goes_on_under_it_with_one_warning(old: str, first: str) -> None:
    rule = "joint" if old == "version 0.1" else old
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    whole = train(net, optimizer, MetaLR(optimizer, rule=rule), data(range(8)))
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    train(net, optimizer, MetaLR(optimizer, rule=rule), data(range(4)))
    state = copy.deepcopy(optimizer.state_dict())
    if old == "version 0.1":  # did not save its rule
        for group in state["param_groups"]:
            group.pop("meta_rule", None)

    optimizer = SGD(layer_groups(net), momentum=0.9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if first == "load":
            optimizer.load_state_dict(state)
        metalr = MetaLR(optimizer)
        if first == "attach":
            optimizer.load_state_dict(state)
    assert len(caught) == 1
    assert f"this run began under the rule {rule}, so it goes on under it" in str(caught[0].message)
    assert metalr.settings.rule == rule
    assert_same(train(net, optimizer, metalr, data(range(4, 8))), whole)


def test_a_state_of_the_free_rule_after_one_of_an_older_rule_is_learned_on_freely() -> None:
    net = network()
    old, new = (SGD(layer_groups(net), momentum=0.9) for _ in range(2))
    train(net, old, MetaLR(old, rule="joint"), data(range(3)))
    train(net, new, MetaLR(new), data(range(3)))
    optimizer = SGD(layer_groups(net), momentum=0.9)
    metalr = MetaLR(optimizer)
    with pytest.warns(UserWarning, match="began under the rule joint"):
        optimizer.load_state_dict(copy.deepcopy(old.state_dict()))
    assert metalr.settings.rule == "joint"
    optimizer.load_state_dict(copy.deepcopy(new.state_dict()))
    assert metalr.settings.rule == "free"
    assert metalr.steps == 3


def test_a_free_run_goes_on_at_its_rates_under_a_rule_that_was_asked_for() -> None:
    net = network()
    optimizer = SGD(layer_groups(net), momentum=0.9)
    metalr = MetaLR(optimizer)
    train(net, optimizer, metalr, data(range(5)))
    rate = metalr.lrs
    metalr.optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin = SGD(layer_groups(net), momentum=0.9)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    joint = MetaLR(twin, rule="joint")
    assert joint.lrs == rate
    assert not any(key in group for group in twin.param_groups for key in ("meta_free", "meta_average", "meta_due"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_weights_of_few_bits_learn_about_the_rates_of_float64(
    make: type[Optimizer], options: dict[str, Any], dtype: torch.dtype
) -> None:
    settings = {"make": make, "options": options, "rule": "free", "streaming": True, "hyper_lr": 0.05}
    exact, coarse = run(60, **settings), run(60, **settings, dtype=dtype)
    for (_, expected), (_, learned) in zip(exact.history, coarse.history, strict=True):
        largest = 5 if dtype == torch.bfloat16 else 1.01
        assert 1 / largest < learned["0"] / expected["0"] < largest


def small_task(seed: int, *, noise: bool) -> Callable[[int], Batch]:
    """Batches of 16 of a small regression; with ``noise`` the targets say nothing about the inputs."""
    teacher = network(seed=5).float()
    generator = torch.Generator().manual_seed(seed)

    def draw(_: int) -> Batch:
        x = torch.randn(16, 4, generator=generator)
        y = torch.randn(16, 2, generator=generator) if noise else teacher(x).detach()
        return x, y

    return draw


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True], ids=["converged", "noise only"])
@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_the_factor_does_not_drift_off_in_a_long_run(
    make: type[Optimizer], options: dict[str, Any], noise: bool
) -> None:
    net = network(dtype=torch.float32)
    optimizer = make(net.parameters(), lr=1.0, **options)
    metalr = MetaLR(optimizer, streaming=True)
    draw, losses, learned = small_task(0, noise=noise), [], []
    for number in range(3000):
        drawn = draw(number)
        optimizer.zero_grad()
        loss = mse_loss(net(drawn[0]), drawn[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        learned.append(metalr.lrs["group 0"])
    early, late = sorted(learned[500:1000])[250], sorted(learned[2500:])[250]
    assert 1e-3 < late / early < 10
    assert sum(losses[-200:]) / 200 < 1.5 * sum(losses[400:600]) / 200 + 0.02
    assert max(losses[1000:]) < 3 * max(losses[:100])


@pytest.mark.slow
def test_a_gan_with_two_optimizers_stays_bounded() -> None:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    metalrs = [MetaLR(torch.optim.Adam(net.parameters(), lr=1.0), streaming=True) for net in (generator, critic)]
    made, judged = (metalr.optimizer for metalr in metalrs)
    loss = nn.functional.softplus
    for _ in range(500):
        real = torch.randn(32, 2) * 0.5 + 1
        fake = generator(torch.randn(32, 4))
        judged.zero_grad()
        (loss(-critic(real)) + loss(critic(fake.detach()))).mean().backward()
        judged.step()
        made.zero_grad()
        loss(-critic(fake)).mean().backward()
        made.step()
    for metalr, net in zip(metalrs, (generator, critic), strict=True):
        assert max(rates(metalr)) < 0.1
        assert all(parameter.isfinite().all() and parameter.abs().max() < 10 for parameter in net.parameters())

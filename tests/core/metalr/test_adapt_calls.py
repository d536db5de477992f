"""A loop that never calls ``adapt()``, or calls it without need, is told so."""

import warnings

import pytest
import torch
from torch.nn.functional import mse_loss

from layertune import MetaLR, OptimizerError
from small_runs import batch, data, layer_groups, network, train


def steps_without_adapt(count: int, **settings) -> tuple[MetaLR, list[warnings.WarningMessage]]:
    """Train with MetaLR attached, and never call ``adapt()``."""
    net = network()
    optimizer = torch.optim.SGD(layer_groups(net), lr=0.05)
    metalr = MetaLR(optimizer, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(count):
            optimizer.zero_grad()
            mse_loss(net(batch(number)[0]), batch(number)[1]).backward()
            optimizer.step()
    return metalr, caught


@pytest.mark.parametrize("rule", ["joint", "free"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_training_without_adapt_warns_once_and_points_at_the_step(every: int, rule: str) -> None:
    _, caught = steps_without_adapt(20, every=every, rule=rule)
    assert len(caught) == 1
    assert "adapt() was not called after any of 3 steps" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("count", "settings"), [(3, {}), (20, {"streaming": True}), (20, {"hyper_lr": 0.0})])
def test_no_warning_where_nothing_is_amiss(count: int, settings: dict) -> None:
    assert steps_without_adapt(count, **settings)[1] == []


def test_a_loop_that_calls_adapt_at_times_is_not_warned() -> None:
    net = network()
    optimizer = torch.optim.SGD(layer_groups(net), lr=0.05)
    metalr = MetaLR(optimizer)
    train(net, optimizer, metalr, data(range(1)))
    for _ in range(5):  # the gradient of the meta pass was cleared
        mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
        optimizer.step()


def test_the_missing_profile_says_that_adapt_was_never_called() -> None:
    with pytest.raises(OptimizerError, match=r"adapt\(\) was never called in 2 steps"):
        steps_without_adapt(2, rule="joint")[0].profile()


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({}, "1 step$"), ({"every": 3}, "3 steps$"), ({"streaming": True}, "2 steps$")],
)
def test_the_profile_before_the_first_adaptation_says_how_long_to_train(settings: dict, needed: str) -> None:
    with pytest.raises(OptimizerError, match=f"train at least {needed}"):
        steps_without_adapt(0, **settings)[0].profile()


def test_adapt_is_refused_in_streaming_mode_and_changes_nothing() -> None:
    metalr, _ = steps_without_adapt(2, streaming=True)
    before = metalr.lrs, [p.grad.clone() for g in metalr.optimizer.param_groups for p in g["params"]]
    with pytest.raises(OptimizerError, match="not needed with streaming=True"):
        metalr.adapt()
    after = metalr.lrs, [p.grad for g in metalr.optimizer.param_groups for p in g["params"]]
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))

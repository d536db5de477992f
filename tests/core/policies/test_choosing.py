"""Successive halving: the arithmetic of rounds and shares, and what a choice rests on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layertune import Choice, PolicyError, Score, choose
from layertune.policies.choosing import Round, halving, leaders


def by_loss(losses: dict[str, float], calls: list[tuple[str, float]] | None = None) -> Callable[[str, float], float]:
    """Return an ``evaluate`` for candidates that are their own names."""

    def evaluate(name: str, share: float) -> float:
        if calls is not None:
            calls.append((name, share))
        return losses[name]

    return evaluate


def named(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


# By hand, for two passes: k rounds of 2 / k passes each, which the candidates of a round share.
@pytest.mark.parametrize(
    ("count", "rounds"),
    [
        (2, [Round(2, 1.0)]),
        (3, [Round(3, 1 / 3), Round(2, 1 / 2)]),
        (4, [Round(4, 1 / 4), Round(2, 1 / 2)]),
        (5, [Round(5, 2 / 15), Round(3, 2 / 9), Round(2, 1 / 3)]),
    ],
)
def test_rounds_and_shares(count: int, rounds: list[Round]):
    found = halving(count, passes=2.0, shortest=0)
    assert [one.count for one in found] == [one.count for one in rounds]
    assert [one.share for one in found] == pytest.approx([one.share for one in rounds])


@given(count=st.integers(2, 200), passes=st.floats(0.01, 100))
def test_a_search_never_costs_more_than_its_passes(count: int, passes: float):
    rounds = halving(count, passes=passes, shortest=0)
    assert sum(one.count * one.share for one in rounds) <= passes * (1 + 1e-9)
    assert all(0 < one.share <= 1 for one in rounds)
    assert rounds[0].count == count
    assert rounds[-1].count == 2
    assert len(rounds) == max(1, math.ceil(math.log2(count))), "as Jamieson and Talwalkar count them"


# By hand: at two passes half a training each is only left for one round; at four, two rounds give 2/3 and a whole one.
@pytest.mark.parametrize(
    ("count", "passes", "rounds"),
    [
        (2, 2, [(2, 1)]),
        (3, 2, [(3, 2 / 3)]),
        (4, 2, [(4, 1 / 2)]),
        (5, 2, [(5, 2 / 5)]),
        (3, 4, [(3, 2 / 3), (2, 1)]),
        (5, 5, [(5, 1 / 2), (2, 1)]),
        (5, 9, [(5, 3 / 5), (3, 1), (2, 1)]),
    ],
)
def test_rounds_are_left_out_rather_than_made_too_short(count: int, passes: float, rounds: list[tuple[int, float]]):
    found = halving(count, passes=passes)
    assert [one.count for one in found] == [count for count, _ in rounds]
    assert [one.share for one in found] == pytest.approx([share for _, share in rounds])


def test_three_candidates_and_the_final_training_are_three_trainings():
    choice = choose(named("a", "b", "c"), by_loss({"a": 3, "b": 1, "c": 2}))
    assert (choice.name, choice.passes) == ("b", pytest.approx(2))
    assert [score.name for score in choice.scores] == ["a", "b", "c"], "each once, as long as the others"


def test_the_worst_of_three_leaves_after_a_third_of_a_training():
    calls: list[tuple[str, float]] = []
    choice = choose(named("0", "0.5", "1"), by_loss({"0": 0.7, "0.5": 0.4, "1": 0.5}, calls), shortest=0)
    assert calls == [("0", 1 / 3), ("0.5", 1 / 3), ("1", 1 / 3), ("0.5", 1 / 2), ("1", 1 / 2)]
    assert choice == Choice(
        "0.5",
        "0.5",
        tuple(Score(name, share, {"0": 0.7, "0.5": 0.4, "1": 0.5}[name]) for name, share in calls),
    )
    assert choice.passes + 1 == pytest.approx(3), "with the final training three"


def test_the_last_round_decides():
    choice = choose(named("early", "late"), lambda name, share: share if name == "late" else 1.0, passes=1.0)
    assert choice.name == "late"
    late = choose(
        named("a", "b", "c"),
        lambda name, share: {"a": 0.1, "b": 0.2, "c": 9}[name] + (name == "a") * (share > 0.4),
        shortest=0,
    )
    assert late.name == "b"


def test_few_candidates_get_no_more_than_a_whole_training():
    choice = choose(named("a", "b"), by_loss({"a": 2, "b": 1}), passes=100)
    assert [score.share for score in choice.scores] == [1.0, 1.0]
    assert choice.passes == 2


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_loses(lost: float):
    assert choose(named("a", "b", "c"), by_loss({"a": lost, "b": lost, "c": 1e30})).name == "c"
    assert leaders({"a": lost, "b": 3.0}, 2) == ["b", "a"]


def test_of_equal_candidates_the_first_is_chosen():
    assert choose(named("a", "b", "c"), by_loss({"a": 1, "b": 1, "c": 1})).name == "a"


@pytest.mark.parametrize("loss", [torch.tensor(0.5, requires_grad=True), torch.tensor([0.5]), np.float32(0.5)])
def test_a_loss_may_be_any_single_number(loss: object):
    choice = choose(named("a", "b"), lambda *_: loss)  # type: ignore[arg-type, return-value]
    assert [score.loss for score in choice.scores] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("candidates", "loss", "passes", "message"),
    [
        ({}, 1.0, 2.0, "at least two candidates, not 0"),
        ({"a": 1}, 1.0, 2.0, "at least two candidates, not 1"),
        ([1, 2], 1.0, 2.0, "candidates have names.*this is a list"),
        ({"a": 1, "b": 2}, 1.0, 0.0, "passes=0.0 is the cost"),
        ({"a": 1, "b": 2}, 1.0, math.inf, "passes=inf is the cost"),
        ({"a": 1, "b": 2}, 1.0, math.nan, "passes=nan is the cost"),
        ({"a": 1, "b": 2}, None, 2.0, "evaluate returned NoneType for candidate a; return the held-out loss"),
        ({"a": 1, "b": 2}, torch.ones(2), 2.0, "evaluate returned Tensor for candidate a"),
        ({"a": 1, "b": 2}, math.nan, 2.0, "the loss of none of a, b is finite"),
    ],
)
def test_bad_input_is_refused(candidates, loss, passes: float, message: str):
    with pytest.raises(PolicyError, match=message):
        choose(candidates, lambda *_: loss, passes=passes)


@pytest.mark.parametrize("shortest", [-0.1, 1.1, math.nan])
def test_a_shortest_share_out_of_range_is_refused(shortest: float):
    with pytest.raises(PolicyError, match=r"is a share of a training, and must be in \[0, 1\]"):
        choose(named("a", "b"), by_loss({"a": 1, "b": 2}), shortest=shortest)

"""The arithmetic of the rule "free", on numbers alone."""

import math
import random
from collections.abc import Callable

import pytest

from layertune.metalr.free.rule import BIAS, LARGEST_MORE_BIAS, LARGEST_Z, RISE, FreeRule

GAIN = 0.05


def learn(rule: FreeRule, cosine: float, level: float = 1.0, max_change: float = 2.0) -> None:
    rule.learn(cosine, gain=GAIN, level=level, max_change=max_change)


def begun(first_rate: float = 1e-3, schedule: float = 1.0) -> FreeRule:
    return FreeRule.begin(first_rate, schedule)


def test_one_cosine_moves_the_log_of_the_rate_by_its_z_score_and_the_bias() -> None:
    rule = begun()
    learn(rule, 0.01)
    # The first cosine is as large as its own root mean square, and the search has twice the gain.
    assert rule.log_rate - math.log(1e-3) == pytest.approx(2 * GAIN * (1 + BIAS))


def test_the_rate_does_not_depend_on_the_scale_of_the_cosines() -> None:
    drawn = random.Random(0)
    cosines = [drawn.gauss(0.3, 1.0) for _ in range(200)]
    rates = []
    for scale in (1e-4, 0.02):  # below the cosine from which on batches agree much
        rule = begun()
        for cosine in cosines:
            learn(rule, scale * cosine)
        rates.append(rule.log_rate)
    assert rates[0] == pytest.approx(rates[1], rel=1e-9)


def test_the_gain_of_the_search_falls_with_each_turn_to_that_of_the_hold() -> None:
    rule = begun()
    for _ in range(40):
        for cosine in (0.1, 0.1, -0.1, -0.1, -0.1):
            learn(rule, cosine)
    assert rule.turns > 20
    before = rule.log_rate
    learn(rule, 0.0)
    assert rule.log_rate - before == pytest.approx(GAIN * BIAS)


def test_an_outlier_counts_no_more_than_three_deviations() -> None:
    rule = begun()
    for _ in range(100):
        learn(rule, 1e-3)
    before = rule.log_rate
    learn(rule, 0.1)
    assert rule.log_rate - before <= 2 * GAIN * (LARGEST_Z + BIAS) + 1e-12


def test_the_bias_is_larger_where_batches_agree_and_stays_below_one() -> None:
    rule = begun()
    learn(rule, 0.05)
    assert rule.log_rate - math.log(1e-3) == pytest.approx(2 * GAIN * (1 + BIAS))
    rule = begun()
    learn(rule, 0.9)
    assert rule.log_rate - math.log(1e-3) == pytest.approx(2 * GAIN * (1 + BIAS + LARGEST_MORE_BIAS))
    assert BIAS + LARGEST_MORE_BIAS < 1


def test_one_adaptation_stays_within_max_change() -> None:
    rule = begun()
    learn(rule, 0.1, max_change=1.01)
    assert rule.log_rate - math.log(1e-3) == pytest.approx(math.log(1.01))


def test_a_cosine_of_exactly_zero_at_the_start_teaches_nothing() -> None:
    rule = begun()
    learn(rule, 0.0)
    assert rule.log_rate == math.log(1e-3)


SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda _: 1.0,
    "linear warm-up": lambda step: min(1.0, (step + 1) / 50),
    "whole epochs, as timm": lambda step: 1.0 if step >= 29 else 1e-3,
    "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / 300)) + 1e-6,
    "restarts": lambda step: 0.5 * (1 + math.cos(math.pi * (step % 50) / 50)) + 1e-6,
    "one cycle": lambda step: 1 - abs(step - 100) / 101 if step < 200 else 1e-4,
    "jumps": lambda step: 1e3 if step % 7 == 3 else 1e-3,
}


@pytest.mark.parametrize("respect", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_never_rises_faster_than_its_bound_whatever_the_schedule_does(name: str, respect: bool) -> None:
    schedule = SCHEDULES[name]
    rule = begun(first_rate=1e-4, schedule=schedule(0))
    largest = before = rule.rate
    for step in range(1, 300):
        learn(rule, 0.1, level=rule.level(schedule(step - 1)))
        rate = rule.next_rate(schedule(step), respect=respect)
        # After a restart the rate may rise to that of the first step at once.
        assert rate <= RISE * max(before, rule.first_rate) * (1 + 1e-12)
        before, largest = rate, max(largest, rate)
    assert largest > 1e-4


def test_a_rise_beyond_the_largest_rate_so_far_leaves_the_effective_rate_as_it_is() -> None:
    rule = begun(schedule=1e-3)
    for _ in range(20):
        learn(rule, 0.1)
        rule.next_rate(1e-3, respect=False)
    before = rule.next_rate(1e-3, respect=False)
    assert rule.next_rate(1.0, respect=False) == pytest.approx(before)
    assert rule.peak == 1.0


def test_the_rate_falls_with_the_schedule_and_learning_slows_with_it() -> None:
    rule = begun()
    rule.next_rate(1.0, respect=False)
    assert rule.next_rate(0.25, respect=False) == pytest.approx(0.25e-3)
    before = rule.log_rate
    learn(rule, 0.1, level=rule.level(0.25))
    assert rule.log_rate - before == pytest.approx(0.25 * 2 * GAIN * (1 + BIAS))


def test_a_restart_gives_the_rate_back_step_by_step() -> None:
    rule = begun()
    rule.log_rate = math.log(1e-1)
    for _ in range(20):
        rule.next_rate(1.0, respect=False)
    rule.next_rate(1e-4, respect=False)
    rates = [rule.next_rate(1.0, respect=False) for _ in range(30)]
    assert rates[0] == pytest.approx(RISE * rule.first_rate)
    assert rates[1] / rates[0] == pytest.approx(RISE)
    assert rates[-1] == pytest.approx(1e-1)


def test_a_rate_that_is_respected_rises_with_the_schedule_after_what_was_learned_is_used_up() -> None:
    rule = begun(first_rate=0.1, schedule=0.1)
    rule.log_rate = math.log(0.4)  # four times the schedule
    rule.next_rate(0.2, respect=True)
    assert math.exp(rule.log_rate) == pytest.approx(0.4)  # the doubled rate uses up half of it
    rule.next_rate(1.0, respect=True)
    assert math.exp(rule.log_rate) == pytest.approx(1.0)
    rule.log_rate = math.log(0.5)  # half of the schedule: what was lowered stays lowered
    rule.next_rate(2.0, respect=True)
    assert math.exp(rule.log_rate) == pytest.approx(1.0)


def test_limits_hold_for_the_learned_rate() -> None:
    rule = begun()
    rule.bound(0.0, 1e-4)
    assert math.exp(rule.log_rate) == pytest.approx(1e-4)
    rule.bound(1e-2, math.inf)
    assert math.exp(rule.log_rate) == pytest.approx(1e-2)


def noisy(count: int = 60) -> FreeRule:
    rule, drawn = begun(), random.Random(1)
    for _ in range(count):
        learn(rule, drawn.gauss(0.01, 0.02))
    return rule


def test_only_a_cosine_far_beyond_its_noise_is_a_gross_overshoot() -> None:
    rule = noisy()
    assert not rule.is_gross_overshoot(-0.05)
    assert not rule.is_gross_overshoot(0.9)
    assert rule.is_gross_overshoot(-0.5)


def test_the_first_cosines_are_no_overshoot_since_their_noise_is_not_known() -> None:
    assert not noisy(9).is_gross_overshoot(-1.0)


def test_a_cut_lowers_the_rate_to_a_third_and_is_counted() -> None:
    rule = begun()
    rule.cut()
    assert math.exp(rule.log_rate) == pytest.approx(1e-3 / math.e)
    assert rule.overshoots == 1

"""AutoLR's pure functions against cases worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layertune.autolr.weight_variation import first_target, mended_target, sorting_quality, weight_variation

variations = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=20)


def test_variation_is_the_distance_over_the_number_of_weights_of_the_whole_layer():
    before = [torch.zeros(1, 1, 2, 2), torch.zeros(2, 1)]
    after = [torch.full((1, 1, 2, 2), 1.0), torch.tensor([[4.0], [4.0]])]
    assert weight_variation(before, after) == pytest.approx(math.sqrt(4 * 1 + 2 * 16) / 6)  # 6 / 6
    assert weight_variation(before, before) == 0


@pytest.mark.parametrize(
    ("moved", "quality"),
    [
        ([1, 2, 3], 1.0),
        ([2, 1, 3], 1 - 2 / 9 * (1 + 1)),
        ([3, 2, 1], 1 - 2 / 9 * (2 + 0 + 2)),
        # Layers 1, 2, 0 hold the smallest to the largest: |0 - 1| + |1 - 2| + |2 - 0|.
        ([4, 1, 2], 1 - 2 / 9 * 4),
        ([8, 7, 6, 5, 4, 3, 2, 1], 1 - 2 / 64 * (7 + 5 + 3 + 1 + 1 + 3 + 5 + 7)),
        ([5, 5, 5], 1.0),
    ],
)
def test_sorting_quality_by_hand(moved: list[float], quality: float):
    assert sorting_quality(moved) == pytest.approx(quality)


@given(moved=variations)
def test_sorting_quality_is_between_0_and_1_and_1_where_they_ascend(moved: list[float]):
    assert -1e-12 <= sorting_quality(moved) <= 1
    assert sorting_quality(sorted(moved)) == 1


@pytest.mark.parametrize(
    ("moved", "target"),
    [
        ([1, 100, 50, 20], [2.0, 14.666667, 27.333333, 40.0]),
        ([10, 12], [4.8, 20.0]),  # 2 * 10 lies above 0.4 * 12: the ends change places
        ([0, 5, 20], [8.0, 9.0, 10.0]),  # a layer that did not move gives no end: 0.4 * 20 to 2 * 5
    ],
)
def test_the_first_target_is_evenly_spaced(moved: list[float], target: list[float]):
    assert first_target(moved, 2, 0.4) == pytest.approx(target)


@pytest.mark.parametrize(
    ("moved", "target"),
    [
        # delta = (9 - 1) / 4 = 2; the middle is layer 2. Down: 4 < 9, so 4 - 2 = 2; 2 > 1. Up: 4 > 3, so 6; 6 < 8.
        ([1, 9, 4, 3, 8], [1, 2, 4, 6, 8]),
        # delta = 6 / 3 = 2, the middle layer 2 of 4. Up: 7 > 1, so 9. Down: 7 > 3 > 2.
        ([2, 3, 7, 1], [2, 3, 7, 9]),
        # delta = 8 / 2 = 4; 1 - 4 is no target, so half of 1; up: 1 < 9.
        ([3, 1, 9], [0.5, 1, 9]),
        ([1, 2, 3], [1, 2, 3]),
        ([3, 0, 1], [0.5, 1, 1]),  # a layer that did not move counts as the least one that did
    ],
)
def test_inversions_are_mended_from_the_middle_outwards(moved: list[float], target: list[float]):
    assert mended_target(moved) == pytest.approx(target)


@given(moved=variations)
def test_both_targets_ascend_and_stay_above_0(moved: list[float]):
    for target in (first_target(moved, 2, 0.4), mended_target(moved)):
        assert len(target) == len(moved)
        assert all(value > 0 for value in target)
        assert sorting_quality(target) == 1

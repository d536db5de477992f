"""Paths and levels of the U, and the depths of I1 and I2."""

import pytest

from layertune import ModelError
from layertune.layers.blocks import Block, Place
from layertune.layers.depth import depths, place_blocks
from layertune.layers.granularity import regroup
from layertune.layers.operations import Operation


def chain(*positions: float, feeds: dict[int, list[int]] | None = None, gates: tuple[int, ...] = ()) -> list[Block]:
    """Blocks of one operation each, named by their number; each feeds the next one unless said otherwise."""
    last = len(positions) - 1
    blocks = []
    for index, size in enumerate(positions):
        fed = (feeds or {}).get(index, [index + 1] if index < last else [])
        operation = Operation(str(index), "conv", 1, size, [str(to) for to in fed], is_gate=index in gates)
        blocks.append(Block(str(index), (operation,), is_head=index == last))
    return blocks


def drawn(places: list[Place]) -> list[tuple[str, str, int]]:
    return [(place.block.name, place.role[0], place.level) for place in places]


def test_a_u():
    places = place_blocks(chain(64, 16, 4, 16, 64, 64))
    assert drawn(places) == [("0", "e", 0), ("1", "e", 1), ("2", "b", 2), ("3", "d", 1), ("4", "d", 0), ("5", "h", 0)]
    assert depths(places, "I1") == [1, 2, 3, 4, 5, 6]
    assert depths(places, "I2") == [1, 2, 3, 2, 1, 4]


def test_no_u():
    places = place_blocks(chain(64, 16, 4, 1))
    assert [place.role for place in places] == ["encoder"] * 3 + ["head"]
    assert depths(places, "I1") == [1, 2, 3, 4]
    with pytest.raises(ModelError, match="its resolution never rises again after 2; use depth='I1'"):
        depths(places, "I2")


def test_the_last_block_at_the_coarsest_level_is_the_bottleneck():
    assert [place.role[0] for place in place_blocks(chain(64, 4, 4, 4, 64, 64))] == ["e", "e", "e", "b", "d", "h"]


def test_a_branch_on_a_skip_that_runs_late_is_contracting():
    """As in UNETR, where the convolutions on the skips run after the transformer."""
    feeds = {0: [1, 2], 1: [3], 2: [4], 3: [4]}
    places = place_blocks(chain(64, 4, 64, 16, 64, 64, feeds=feeds))
    assert drawn(places) == [("0", "e", 0), ("2", "e", 0), ("1", "b", 2), ("3", "d", 1), ("4", "d", 0), ("5", "h", 0)]


def test_small_changes_of_size_are_no_level_and_halving_one_axis_is():
    tokens = place_blocks(chain(196, 197, 196, 1))
    assert [place.level for place in tokens] == [0, 0, 0, 1]
    anisotropic = place_blocks(chain(64, 32, 16, 32, 64, 64))
    assert [place.level for place in anisotropic] == [0, 1, 2, 1, 0, 0]


def test_a_gate_makes_no_u():
    places = place_blocks(chain(64, 1, 64, 16, 1, gates=(1,)))
    assert [(place.role[0], place.level) for place in places] == [("e", 0), ("e", 0), ("e", 0), ("e", 1), ("h", 2)]


def test_an_embedding_of_the_time_step_is_no_bottleneck():
    feeds = {0: [1, 2, 3]}
    places = place_blocks(chain(1, 64, 16, 64, 64, feeds=feeds, gates=(0,)))
    assert [place.role[0] for place in places] == ["e", "e", "b", "d", "h"]


def test_a_head_alone():
    places = place_blocks(chain(64))
    assert drawn(places) == [("0", "h", 0)]
    assert depths(places, "I1") == [1]
    with pytest.raises(ModelError, match="no decoder"):
        depths(places, "I2")


def test_levels_that_no_layer_lies_on_leave_no_gap_in_i2():
    places = place_blocks(chain(16, 4, 16, 64))
    assert [place.level for place in places] == [1, 2, 1, 0]
    assert depths(places, "I2") == [1, 2, 1, 3]


def test_stages_are_runs_of_one_path_and_level_behind_the_stem():
    places = place_blocks(chain(64, 64, 64, 16, 4, 4, 16, 64, 64, 64))
    assert [[op.name for op in place.block.operations] for place in regroup(places, "stage")] == [
        ["0"], ["1", "2"], ["3"], ["4", "5"], ["6"], ["7", "8"], ["9"],
    ]  # fmt: skip
    assert [place.role[0] for place in regroup(places, "stage")] == ["e", "e", "e", "b", "d", "d", "h"]
    assert regroup(places, "block") == places

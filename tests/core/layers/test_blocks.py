"""Which operations share a learning rate."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layertune.layers.blocks import Block, find_blocks
from layertune.layers.granularity import by_operation, merged
from layertune.layers.names import common_path
from layertune.layers.operations import Operation
from layertune.layers.trace import trace
from small_networks import DoubleConv, Residual, SmallResNet, SmallUNet, image


def blocks_of(net: nn.Module) -> dict[str, list[str]]:
    blocks = find_blocks(trace(net, image()), net)
    assert [block.is_head for block in blocks] == [False] * (len(blocks) - 1) + [True]
    return {block.name: [operation.name for operation in block.operations] for block in blocks}


def test_double_convolutions_with_their_transposed_convolution():
    assert blocks_of(SmallUNet((2, 4))) == {
        "down.0": ["down.0.0", "down.0.3"],
        "down.1": ["down.1.0", "down.1.3"],
        "merge.0": ["up.0", "merge.0.0", "merge.0.3"],
        "heads.0": ["heads.0"],
    }


def test_residual_blocks_with_their_projection():
    blocks = blocks_of(SmallResNet())
    assert blocks["stem.0"] == ["stem.0"]
    assert blocks["blocks.2"] == ["blocks.2.conv1", "blocks.2.conv2", "blocks.2.shortcut"]


def test_a_plain_stack_has_a_block_for_each_convolution():
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1), nn.ReLU()) for _ in range(3)), nn.Conv2d(1, 2, 1))
    assert blocks_of(net) == {"0.0": ["0.0"], "1.0": ["1.0"], "2.0": ["2.0"], "3": ["3"]}


def test_a_lone_down_sampling_joins_the_block_that_it_feeds():
    net = nn.Sequential(DoubleConv(1, 2), nn.Conv2d(2, 2, 2, 2), DoubleConv(2, 2), nn.Conv2d(2, 1, 1))
    assert blocks_of(net) == {"0": ["0.0", "0.3"], "2": ["1", "2.0", "2.3"], "3": ["3"]}


def test_a_convolution_that_ends_its_level_does_not_join_the_next_one():
    """As the merging convolution of MONAI's AttentionUnet, which stands beside its level's other modules."""

    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.merge = DoubleConv(2, 2), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.merge(F.interpolate(self.body(x), scale_factor=1))

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level0, self.up, self.level1 = Level(), nn.Upsample(scale_factor=2), Level()
            self.stem, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
            self.between = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.level1(self.up(self.level0(self.between(self.stem(x))))))

    blocks = blocks_of(Up())
    assert "level0.merge" not in [name for name, operations in blocks.items() if "level1.body.0" in operations]
    assert not any({"level0.merge", "level1.body.0"} <= set(operations) for operations in blocks.values())


def test_a_head_within_a_residual_block_is_the_whole_block():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), Residual(2, 2), Residual(2, 3))
    assert blocks_of(net)["2"] == ["2.conv1", "2.conv2", "2.shortcut"]


def test_several_heads_are_one():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = DoubleConv(1, 2)
            self.organ, self.lesion = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return self.organ(x), self.lesion(x)

    assert list(blocks_of(Two()).values())[-1] == ["organ", "lesion"]


def test_a_network_of_one_operation_is_its_head():
    assert blocks_of(nn.Conv2d(1, 2, 3)) == {"weight": ["weight"]}


def operation(name: str, positions: float, is_gate: bool = False) -> Operation:
    return Operation(name, "conv", 1, positions, is_gate=is_gate)


def test_a_gate_does_not_set_a_blocks_resolution():
    block = Block("a", (operation("a.conv", 64), operation("a.se", 1, is_gate=True)))
    assert block.positions == 64
    assert not block.is_gate
    assert Block("g", (operation("g", 1, is_gate=True),)).is_gate


def test_taking_apart_and_merging():
    a, b = Block("x.a", (operation("x.a.0", 4), operation("x.a.1", 4))), Block("x.b", (operation("x.b", 4),))
    assert [part.name for part in by_operation(a)] == ["x.a.0", "x.a.1"]
    head = Block("h", (operation("h.0", 4), operation("h.1", 2)), is_head=True)
    assert by_operation(head) == [head]
    assert merged([a, b], set()).name == "x"
    assert merged([a, b], {"x"}).name == "x.a"
    assert merged([a, b], set()).operations == a.operations + b.operations


@pytest.mark.parametrize(
    ("paths", "expected"),
    [(["a.b.c", "a.b.d"], "a.b"), (["a.b", "a.b"], "a.b"), (["a.bc", "a.bd"], "a"), (["a", "b"], ""), ([], "")],
)
def test_common_path(paths: list[str], expected: str):
    assert common_path(paths) == expected


def test_every_operation_is_in_one_block():
    net = SmallUNet(deep_supervision=True)
    found = trace(net, torch.empty(2, 1, 16, 16))
    inside = [operation.name for block in find_blocks(found, net) for operation in block.operations]
    assert sorted(inside) == sorted(found.operations)

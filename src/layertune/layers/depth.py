"""The depth of a block: its path and level in the U, and the two readings I1 and I2 (MetaLR sec. 3.3)."""

from collections.abc import Sequence
from itertools import pairwise

from layertune.errors import ModelError
from layertune.layers.blocks import SAME_RESOLUTION, Block, Place
from layertune.layers.layer import Depth, Role

__all__ = ["depths", "place_blocks"]


def place_blocks(blocks: Sequence[Block]) -> list[Place]:
    """Find each block's path and level, and sort by path: contracting path, bottleneck, expanding path, head.

    The bottleneck is the last block that runs at the coarsest level. The expanding path is all blocks that depend on
    its output. All other blocks, with the branches on skip connections, are the contracting path. A network whose
    resolution never rises again after its bottleneck has no U.

    Args:
        blocks: The blocks in order of execution, the head last.

    Returns:
        The places in the order of I1. Within a path the blocks are in order of execution.
    """
    levels = _levels(blocks)
    body = range(len(blocks) - 1)
    bottom = max((index for index in body if levels[index] == max(levels[:-1])), default=0)
    is_u = any(level < levels[bottom] for level in levels[bottom + 1 :])
    after = _downstream(blocks, bottom) if is_u else set()
    encoder = [index for index in body if index not in after and not (is_u and index == bottom)]
    paths: list[tuple[Role, list[int]]] = [
        ("encoder", encoder),
        ("bottleneck", [bottom] if is_u else []),
        ("decoder", sorted(after - {len(blocks) - 1})),
        ("head", [len(blocks) - 1]),
    ]
    return [Place(blocks[index], role, levels[index]) for role, path in paths for index in path]


def depths(places: Sequence[Place], interpretation: Depth) -> list[int]:
    """Return the depth of each block from 1; the head is the deepest (MetaLR sec. 3.3).

    Args:
        places: The blocks in the order of I1.
        interpretation: ``"I1"``: the left-most layers are the shallowest, and depth is the order. ``"I2"``: the top of
            the U is the shallowest, and depth is the resolution level.

    Raises:
        ModelError: The interpretation is I2, and the network has no expanding path.
    """
    if interpretation == "I1":
        return list(range(1, len(places) + 1))
    if all(place.role != "bottleneck" for place in places):
        raise ModelError(
            "I2 reads depth off a U, and this network has no decoder: its resolution never rises again after "
            f"{places[-2 if len(places) > 1 else -1].block.name}; use depth='I1'"
        )
    levels = sorted({place.level for place in places[:-1]})
    return [*(levels.index(place.level) + 1 for place in places[:-1]), len(levels) + 1]


def _levels(blocks: Sequence[Block]) -> list[int]:
    """Return the resolution level of each block; a gate has the level of the block before it, or the finest."""
    sizes = sorted({block.positions for block in blocks if not block.is_gate}, reverse=True)
    level_of = dict.fromkeys(sizes, 0)
    for larger, size in pairwise(sizes):
        level_of[size] = level_of[larger] + (larger >= SAME_RESOLUTION * size)
    levels: list[int] = []
    for block in blocks:
        levels.append((levels or [0])[-1] if block.is_gate else level_of[block.positions])
    return levels


def _downstream(blocks: Sequence[Block], start: int) -> set[int]:
    """Return the numbers of the blocks that depend on the output of one block."""
    block_of = {operation.name: index for index, block in enumerate(blocks) for operation in block.operations}
    reached: set[int] = set()
    frontier = [start]
    while frontier:
        fed = {block_of[name] for operation in blocks[frontier.pop()].operations for name in operation.feeds}
        frontier += fed - reached - {start}
        reached |= fed - {start}
    return reached

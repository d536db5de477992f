"""Granularity: single modules, blocks, or stages of one resolution as layers."""

from collections.abc import Sequence

from layertune.layers.blocks import Block, Place
from layertune.layers.layer import Granularity
from layertune.layers.names import common_path

__all__ = ["by_operation", "merged", "regroup"]


def regroup(places: Sequence[Place], granularity: Granularity) -> list[Place]:
    """Split blocks into operations, or merge neighbours on one path and level into stages.

    Args:
        places: The blocks with their places.
        granularity: ``"module"``, ``"block"`` (unchanged) or ``"stage"``. A lone first operation (the stem) stays a
            stage of its own, as in timm.

    Returns:
        The new blocks. Each has the place of the last block that it was made of.
    """
    if granularity == "module":
        return [Place(part, place.role, place.level) for place in places for part in by_operation(place.block)]
    if granularity == "block":
        return list(places)
    stages: list[list[Place]] = []
    for index, place in enumerate(places):
        after_stem = index == 1 and len(places[0].block.operations) == 1
        if stages and not after_stem and _one_stage(stages[-1][-1], place):
            stages[-1].append(place)
        else:
            stages.append([place])
    regrouped: list[Place] = []
    for stage in stages:
        taken = {place.block.name for place in (*regrouped, places[-1])} - {stage[-1].block.name}
        block = merged([place.block for place in stage], taken)
        regrouped.append(Place(block, stage[-1].role, stage[-1].level))
    return regrouped


def _one_stage(a: Place, b: Place) -> bool:
    paths = {"encoder" if place.role == "bottleneck" else place.role for place in (a, b)}
    return len(paths) == 1 and a.level == b.level and b.role != "head"


def by_operation(block: Block) -> list[Block]:
    """Split a block into its operations; the head is not split."""
    return [block] if block.is_head else [Block(operation.name, (operation,)) for operation in block.operations]


def merged(blocks: list[Block], taken: set[str]) -> Block:
    """Merge blocks into one. It has the name of the module around them, unless that name is taken."""
    name = common_path(block.name for block in blocks)
    operations = tuple(operation for block in blocks for operation in block.operations)
    return Block(name if name and name not in taken else blocks[0].name, operations, blocks[0].is_head)

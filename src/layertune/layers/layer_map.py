"""Place the parameters of a network in layers, each with its depth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from torch import nn
from torch.nn.parameter import is_lazy

from layertune.errors import ModelError
from layertune.layers.blocks import Block, Place, find_blocks
from layertune.layers.depth import depths, place_blocks
from layertune.layers.granularity import regroup
from layertune.layers.layer import Depth, Granularity, Layer, LayerMap, Role, require_network
from layertune.layers.names import common_path, named_parameters, unwrap
from layertune.layers.trace import Trace, trace

__all__ = ["map_layers"]


def map_layers(
    model: nn.Module,
    *example_inputs: Any,
    granularity: Granularity = "block",
    depth: Depth = "I1",
    matcher: Callable[[str], int] | None = None,
) -> LayerMap:
    """Place every parameter of a network in exactly one layer, with its depth.

    Args:
        model: The network; it may be wrapped by ``torch.compile`` or DDP and hold ``SyncBatchNorm``.
        *example_inputs: The arguments of its forward, for instance ``torch.empty(2, 1, 64, 64, 64)``; nothing is
            computed.
        granularity: The size of a layer: ``"module"`` (a convolution or linear layer with its norm), ``"block"`` (a
            residual, transformer or double-convolution block; ResNet-18 has the paper's 9 blocks and the classifier) or
            ``"stage"`` (the blocks of one resolution). With a matcher it only names what the matcher returns.
        depth: The reading of depth, ``"I1"`` (order of execution) or ``"I2"`` (resolution level of the U), MetaLR
            sec. 3.3.
        matcher: A function from a parameter's name to the number of its layer, ascending with depth, in place of an
            example input. The highest number is the head.

    Returns:
        The layers in the order of I1, the head last.

    Raises:
        ModelError: The network refuses the input, the network has no decoder and ``depth`` is I2, or neither an example
            input nor a matcher is given.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
        >>> [(layer.name, layer.depth, layer.role) for layer in map_layers(net, torch.empty(2, 1, 8, 8))]
        [('0', 1, 'encoder'), ('3', 2, 'head')]
    """
    if granularity not in get_args(Granularity) or depth not in get_args(Depth):
        raise ModelError(f"granularity is module, block or stage and depth I1 or I2, not {granularity!r} and {depth!r}")
    require_network(model)
    if matcher is not None:
        return _match_layers(model, matcher, granularity, depth)
    if not example_inputs:
        raise ModelError(
            f"map_layers needs an example input to run {type(unwrap(model)).__name__} once, for instance "
            "torch.empty(2, 3, 224, 224); for a timm model layertune_timm.map_layers(model) needs none"
        )
    net = unwrap(model)
    net_trace = trace(net, *example_inputs)
    places = regroup(place_blocks(find_blocks(net_trace, net)), granularity)
    names = _hold(net, net_trace, [place.block for place in places])
    # A block whose weights all belong to an earlier one (tied weights) has nothing of its own to tune.
    places = [place for place in places if names[place.block.name]]
    parameters = named_parameters(net)
    layers = tuple(
        Layer(name, tuple(names[name]), number, place.role, place.level, fed, _size(parameters, names[name]))
        for place, number, fed in zip(places, depths(places, depth), _feeds(places), strict=True)
        for name in (place.block.name,)
    )
    return LayerMap((*layers[:-1], replace(layers[-1], role="head")), depth, granularity, net_trace.unused)


def _feeds(places: Sequence[Place]) -> list[tuple[str, ...]]:
    """Return for each block the names of the other blocks that read its output."""
    home = {operation.name: place.block.name for place in places for operation in place.block.operations}
    order = [place.block.name for place in places]
    feeds = []
    for place in places:
        fed = {home[name] for operation in place.block.operations for name in operation.feeds if name in home}
        feeds.append(tuple(sorted(fed - {place.block.name}, key=order.index)))
    return feeds


def _hold(net: nn.Module, net_trace: Trace, blocks: list[Block]) -> dict[str, list[str]]:
    """Return the names of the parameters of each block."""
    block_of = {operation.name: block for block in blocks for operation in block.operations}
    order = list(net_trace.operations)
    held: dict[str, list[str]] = {block.name: [] for block in blocks}
    if len(held) < len(blocks):
        raise ModelError(f"two layers came to bear one name, of {[block.name for block in blocks]}; give a matcher")
    for name in named_parameters(net):
        block = block_of[_operation_for(name, net_trace, order, blocks[-1].operations[-1].name)]
        held[block.name].append(name)
    return held


def _operation_for(parameter: str, net_trace: Trace, order: list[str], last: str) -> str:
    """Return the operation of a parameter: its own, the one it normalises, or the nearest in the module tree."""
    owner = net_trace.owners.get(parameter, parameter.rpartition(".")[0])
    if owner in net_trace.operations:
        return owner
    if net_trace.norms.get(owner) is not None:
        return str(net_trace.norms[owner])
    if parameter not in net_trace.position:
        near = max(order, key=lambda operation: (_shared(owner, operation), operation == last))
        return near if _shared(owner, near) else last
    index = net_trace.position[parameter]
    before, after = order[max(0, index - 1)], order[min(index, len(order) - 1)]
    return after if _shared(owner, after) > _shared(owner, before) else before


def _shared(a: str, b: str) -> int:
    path = common_path([a, b])
    return path.count(".") + 1 if path else 0


def _match_layers(model: nn.Module, matcher: Callable[[str], int], granularity: Granularity, depth: Depth) -> LayerMap:
    if depth == "I2":
        raise ModelError("I2 reads resolutions, which a matcher does not know; give an example input instead")
    numbers: dict[int, list[str]] = {}
    parameters = named_parameters(model)
    for name in parameters:
        numbers.setdefault(matcher(name), []).append(name)
    if not numbers:
        raise ModelError(f"{type(unwrap(model)).__name__} has no parameters to place in layers")
    layers: list[Layer] = []
    for index, number in enumerate(sorted(numbers), 1):
        role: Role = "head" if index == len(numbers) else "encoder"
        modules = [name.rpartition(".")[0] for name in numbers[number]]
        name = common_path(modules) or modules[0] or numbers[number][0]
        if any(name == layer.name for layer in layers):
            name = f"{name}#{index}"
        layers.append(Layer(name, tuple(numbers[number]), index, role, size=_size(parameters, numbers[number])))
    return LayerMap(tuple(layers), "I1", granularity)


def _size(parameters: Mapping[str, nn.Parameter], names: Sequence[str]) -> int | None:
    """Return how many weights some parameters have, or None if one of them gets its shape in the first forward."""
    held = [parameters[name] for name in names]
    return None if any(map(is_lazy, held)) else sum(parameter.numel() for parameter in held)

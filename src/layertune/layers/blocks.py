"""Blocks: the convolutions and linear layers of a traced network that share a learning rate."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from layertune.layers.layer import Role
from layertune.layers.names import common_path, plain_name
from layertune.layers.trace import Operation, Trace

__all__ = ["SAME_RESOLUTION", "Block", "Place", "find_blocks"]


# Feature maps whose sizes differ by a smaller factor have one resolution. A class token or the padding of an odd size
# is no change of level, while halving a single axis is one, and no U-Net pools less than that.
SAME_RESOLUTION = 1.5


@dataclass(frozen=True)
class Block:
    """The operations of one layer, in order of execution.

    Attributes:
        name: The path of the module that holds them.
        operations: The convolutions and linear layers of the block, at least one.
        is_head: Whether they make the model's output.
    """

    name: str
    operations: tuple[Operation, ...]
    is_head: bool = False

    @property
    def positions(self) -> float:
        """The number of output positions per sample of the last operation that is no gate."""
        return _without_gates(self.operations)[-1].positions

    @property
    def is_gate(self) -> bool:
        """Whether the block only scales or shifts the output of other blocks, and so has no resolution of its own."""
        return all(operation.is_gate for operation in self.operations)


@dataclass(frozen=True)
class Place:
    """A block with its place in the network.

    Attributes:
        block: The operations that become one layer.
        role: The path of the U that holds the block; ``"encoder"`` for all but the head in a network without a U.
        level: The resolution level of the block's output; 0 is the finest.
    """

    block: Block
    role: Role
    level: int


def find_blocks(trace: Trace, model: nn.Module) -> list[Block]:
    """Group a trace's operations into blocks, in order of execution, the head last.

    Of the modules around an operation, its block is the first of these that exists:

    1. the innermost module that adds a shortcut, such as a residual or transformer block. These are recognised by
       their class, so a block of the same class without a shortcut is a block too;
    2. the innermost module that holds several operations of one resolution, such as a double convolution;
    3. the operation alone.

    A lone operation that is not the stem, such as a down-sampling or a transposed convolution, joins the block that it
    feeds.

    Args:
        trace: The trace of the network, which says what ran and in which order.
        model: The traced network, without wrappers.

    Returns:
        The blocks. Each operation is in exactly one of them.
    """
    modules = {plain_name(name): module for name, module in model.named_modules()}
    residual = _residual_modules(trace, modules)
    head = _head_names(trace, residual)
    body = [operation for operation in trace.operations.values() if operation.name not in head]
    homes = _homes(body, trace, residual)
    _join_lone(body, homes)
    blocks = [
        Block(home, tuple(operation for operation in body if homes[operation.name] == home))
        for home in dict.fromkeys(homes[operation.name] for operation in body)
    ]
    operations = tuple(operation for operation in trace.operations.values() if operation.name in head)
    name = common_path(operation.name for operation in operations) or "head"
    if name in {block.name for block in blocks}:
        name = operations[0].name
    return [*blocks, Block(name, operations, is_head=True)]


def _ancestors(name: str) -> list[str]:
    """Return the path itself and the modules around it, innermost first, without the root."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _without_gates(operations: Sequence[Operation]) -> Sequence[Operation]:
    return [operation for operation in operations if not operation.is_gate] or operations


def _one_resolution(operations: Sequence[Operation]) -> bool:
    positions = [operation.positions for operation in _without_gates(operations)]
    return max(positions) < SAME_RESOLUTION * min(positions)


def _residual_modules(trace: Trace, modules: dict[str, nn.Module]) -> set[str]:
    classes = {type(modules[name]) for name in trace.residual}
    return {name for name, module in modules.items() if name and type(module) in classes}


def _head_names(trace: Trace, residual: set[str]) -> set[str]:
    """Return the operations that make the output and feed no other; of a residual block, all its operations."""
    ends = [op for op in trace.operations.values() if op.reaches_output and not op.feeds]
    names = set()
    for end in ends or [list(trace.operations.values())[-1]]:
        around = next((module for module in _ancestors(end.name) if module in residual), end.name)
        names |= {name for name in trace.operations if _inside(name, around)}
    return names


def _homes(body: list[Operation], trace: Trace, residual: set[str]) -> dict[str, str]:
    """Return the path of the module that is each operation's block."""
    root = common_path(trace.operations)
    homes = {operation.name: _home(operation, body, trace, residual, root) for operation in body}
    modules = set(homes.values())
    for operation in body:
        if homes[operation.name] not in residual:
            outer = [module for module in _ancestors(homes[operation.name]) if module in modules]
            homes[operation.name] = outer[-1]
    return homes


def _home(operation: Operation, body: list[Operation], trace: Trace, residual: set[str], root: str) -> str:
    around = _ancestors(operation.name)
    for module in around:
        if module in residual:
            return module
    in_body = {op.name for op in body}
    for module in around[1:]:
        inside = [op for op in trace.operations.values() if _inside(op.name, module)]
        if len(inside) == 1:
            continue
        mixed = any(_inside(block, module) for block in residual) or any(op.name not in in_body for op in inside)
        if mixed or _inside(root, module) or not _one_resolution(inside):
            break
        return module
    return operation.name


def _join_lone(body: list[Operation], homes: dict[str, str]) -> None:
    """Let a lone down-sampling or transposed convolution join the block to which it gives the last input."""
    members = Counter(homes.values())
    order = {operation.name: index for index, operation in enumerate(body)}
    last_source: dict[str, Operation] = {}
    for operation in body:
        last_source.update({fed: operation for fed in operation.feeds if order.get(fed, 0) > order[operation.name]})
    for operation in reversed(body[1:]):
        fed = next((fed for fed in operation.feeds if last_source.get(fed) is operation), None)
        if members[homes[operation.name]] > 1 or fed is None or fed not in order:
            continue
        source = last_source.get(operation.name, body[0])
        ends_its_level = _one_resolution([source, operation]) and _nearer(operation.name, source.name, fed)
        upsampling = operation.kind == "conv_transpose" and body[order[fed]].kind != "conv_transpose"
        if not ends_its_level and (members[homes[fed]] > 1 or upsampling):
            homes[operation.name] = homes[fed]


def _nearer(name: str, a: str, b: str) -> bool:
    """Return whether a path shares more of its modules with a than with b."""
    return len(common_path([name, a])) > len(common_path([name, b]))

"""The modules that the names in a state dict tell of, and whether two lists of tensors have the same modules."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = [
    "Leaf",
    "Shapes",
    "Signature",
    "add_statistics",
    "is_statistic",
    "leaves",
    "module_of",
    "modules_around",
    "same_modules",
    "signature",
]

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of the tensors of a network, in its order, each shared tensor once."""
Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""Last names and shapes of tensors, such as ``(("weight", (8, 1, 3, 3)), ("bias", (8,)))``."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Leaf:
    """A module that owns tensors, such as a convolution or a norm.

    Attributes:
        names: The full names of its learned tensors, in their order.
        signature: The last names and shapes of these tensors.
    """

    names: tuple[str, ...]
    signature: Signature


def leaves(names: Sequence[str], shapes: Shapes) -> list[Leaf]:
    """Group consecutive tensors of one module; running statistics are left out.

    Args:
        names: The names to group, a part of ``shapes``.
        shapes: The shape of each tensor.

    Example:
        >>> shapes = {"a.weight": (2, 2), "a.bias": (2,), "b.weight": (3,)}
        >>> [leaf.names for leaf in leaves(list(shapes), shapes)]
        [('a.weight', 'a.bias'), ('b.weight',)]
    """
    groups: list[list[str]] = []
    for name in names:
        if is_statistic(name):
            continue
        if groups and module_of(groups[-1][-1]) == module_of(name):
            groups[-1].append(name)
        else:
            groups.append([name])
    return [Leaf(tuple(group), signature(group, shapes)) for group in groups]


def signature(names: Sequence[str], shapes: Shapes) -> Signature:
    """Return the last name and the shape of each tensor."""
    return tuple((name.rpartition(".")[2], shapes[name]) for name in names)


def is_statistic(name: str) -> bool:
    """Return whether a tensor is a running statistic of a norm, which some files lack."""
    return name.rpartition(".")[2] in STATISTICS


def module_of(name: str) -> str:
    """Return the path of the module that owns a tensor."""
    return name.rpartition(".")[0]


def modules_around(name: str) -> Iterator[str]:
    """Yield the paths of all modules around a tensor, from the outermost to the one that owns it."""
    parts = name.split(".")[:-1]
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def add_statistics(pairs: Mapping[str, str], ours: Shapes, theirs: Shapes) -> dict[str, str]:
    """Pair the running statistics of norms that are paired already, where both sides have them.

    Args:
        pairs: Name in the network -> name in the file.
        ours: The shapes of the network's tensors by name.
        theirs: The shapes of the file's tensors by name.

    Returns:
        ``pairs`` and the pairs of statistics.
    """
    all_pairs = dict(pairs)
    for own, file in pairs.items():
        for statistic in STATISTICS:
            ends = [f"{module_of(name)}.{statistic}".removeprefix(".") for name in (own, file)]
            if ends[0] in ours and ours[ends[0]] == theirs.get(ends[1]):
                all_pairs[ends[0]] = ends[1]
    return all_pairs


def same_modules(own: Sequence[str], file: Sequence[str], ours: Shapes, theirs: Shapes) -> bool:
    """Return whether two lists of tensors that agree in order and shapes also agree in the modules around them.

    Two things must hold:

    - No module of one side crosses a module of the other. A list in which each block begins with what is the end of a
      block on the other side is off by a part of a block, and all its shapes may agree nevertheless.
    - Modules of one parent that look alike have ascending numbers on each side, or the same words on both. A ``query``
      and a ``key`` have equal shapes, and only their names say which comes first.

    Args:
        own: The names of tensors in the network, in order.
        file: The name in the file that each of them would take, in the same order.
        ours: The shapes of the network's tensors by name.
        theirs: The shapes of the file's tensors by name.
    """
    alike = _siblings_are_sure(own, file, ours) and _siblings_are_sure(file, own, theirs)
    return alike and not _cross(_spans(own), _spans(file))


def _siblings_are_sure(names: Sequence[str], partners: Sequence[str], shapes: Shapes) -> bool:
    children: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, name in enumerate(names):
        for module in modules_around(name):
            parent, _, child = module.rpartition(".")
            children[parent][child].append(index)
    for siblings in children.values():
        alike: dict[Signature, list[str]] = defaultdict(list)
        for child, indices in siblings.items():
            alike[signature([names[index] for index in indices], shapes)].append(child)
        for group in alike.values():
            same_words = all(child in partners[index].split(".") for child in group for index in siblings[child])
            if len(group) > 1 and not (_ascending(group) or same_words):
                return False
    return True


def _ascending(words: Sequence[str]) -> bool:
    numbers = [[int(digits) for digits in re.findall(r"\d+", word)] for word in words]
    return len({re.sub(r"\d+", "#", word) for word in words}) == 1 and all(
        before < after for before, after in pairwise(numbers)
    )


def _spans(names: Sequence[str]) -> set[tuple[int, int]]:
    """Return where the tensors of each module begin and end in a list."""
    ends: dict[str, tuple[int, int]] = {}
    for index, name in enumerate(names):
        for module in modules_around(name):
            ends[module] = ends.get(module, (index, index))[0], index
    return set(ends.values())


def _cross(first: set[tuple[int, int]], second: set[tuple[int, int]]) -> bool:
    """Return whether a span of one set begins within a span of the other and ends behind it."""
    open_spans: list[int] = []
    # Sorted so that an outer span comes before the inner ones that begin with it.
    for begin, end in sorted(first | second, key=lambda span: (span[0], -span[1])):
        while open_spans and open_spans[-1] < begin:
            open_spans.pop()
        if open_spans and open_spans[-1] < end:
            return True
        open_spans.append(end)
    return False

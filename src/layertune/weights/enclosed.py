"""Pair tensors of other names inside modules that are paired by name."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from layertune.weights.structure import Shapes, Signature, add_statistics, is_statistic, same_modules, signature

__all__ = ["pair_enclosed"]

Ends = tuple[str | None, str | None]
"""The paired names before and behind a gap; ``None`` where the module begins or ends."""
Gaps = Mapping[Ends, Sequence[str]]
"""The tensors of a module that are in no child of a paired name, by the paired names around them."""


def pair_enclosed(ours: Shapes, theirs: Shapes) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Pair what two naming schemes call differently inside modules that both call the same.

    In such a module, the tensors between the same two paired names are paired if they agree in number, last names and
    shapes, if nothing else in the module that is unpaired has one of these shapes, and if
    ``layertune.weights.structure.same_modules`` holds. So nothing is paired with a tensor of another block, also where
    two libraries list the parts of a block in another order.

    Args:
        ours: The shapes of the network's tensors by name.
        theirs: The shapes of the file's tensors, by the names that they would have in the network.

    Returns:
        The new pairs, network -> file; and the network's tensors that are left and could be one of the file's, each
        with the names of all that it could be.

    Example:
        >>> ours = {"norm1.weight": (8,), "linear1.weight": (16, 8), "norm2.weight": (8,)}
        >>> theirs = {"norm1.weight": (8,), "fc1.weight": (16, 8), "norm2.weight": (8,)}
        >>> pair_enclosed(ours, theirs)
        ({'linear1.weight': 'fc1.weight'}, {})
    """
    pairs: dict[str, str] = {}
    ambiguous: dict[str, list[str]] = {}
    for own, file in _paired_modules(ours, theirs):
        gap_pairs = {} if not own or not file else _pair_gaps(own, file, ours, theirs)
        pairs |= gap_pairs
        ambiguous |= _candidates(own, file, gap_pairs, ours, theirs)
    return add_statistics(pairs, ours, theirs), ambiguous


def _paired_modules(ours: Shapes, theirs: Shapes) -> Iterator[tuple[Gaps, Gaps]]:
    """Yield the gaps of all modules that both sides call the same, from the outermost inwards."""
    pending = [_Level([name for name in ours if not is_statistic(name)], [n for n in theirs if not is_statistic(n)], 0)]
    while pending:
        level = pending.pop()
        own, file = _children(level.own, level.depth), _children(level.file, level.depth)
        shared = own.keys() & file.keys()
        yield _gaps(own, shared), _gaps(file, shared)
        pending += [
            _Level(own[word], file[word], level.depth + 1)
            for word in own
            if word in shared and _is_module(own[word], level.depth) and _is_module(file[word], level.depth)
        ]


@dataclass(frozen=True)
class _Level:
    """The tensors of one module on both sides, and how many words of their names are its path."""

    own: Sequence[str]
    file: Sequence[str]
    depth: int


def _children(names: Sequence[str], depth: int) -> dict[str, list[str]]:
    children: dict[str, list[str]] = defaultdict(list)
    for name in names:
        children[name.split(".")[depth]].append(name)
    return children


def _is_module(names: Sequence[str], depth: int) -> bool:
    return all(len(name.split(".")) > depth + 1 for name in names)


def _gaps(children: Mapping[str, Sequence[str]], shared: set[str]) -> Gaps:
    gaps: dict[Ends, list[str]] = {}
    before: str | None = None
    gap: list[str] = []
    for word, names in children.items():
        if word not in shared:
            gap += names
            continue
        if gap:
            gaps[before, word] = gap
        before, gap = word, []
    return {**gaps, (before, None): gap} if gap else gaps


def _pair_gaps(own: Gaps, file: Gaps, ours: Shapes, theirs: Shapes) -> dict[str, str]:
    elsewhere = _places(own, ours), _places(file, theirs)
    pairs: dict[str, str] = {}
    for ends, names in own.items():
        partners = file.get(ends, ())
        if signature(names, ours) != signature(partners, theirs):
            continue
        kinds = set(signature(names, ours))
        only_here = all(place[kind] == 1 for place in elsewhere for kind in kinds)
        if only_here and same_modules(names, partners, ours, theirs):
            pairs |= dict(zip(names, partners, strict=True))
    return pairs


def _places(gaps: Gaps, shapes: Shapes) -> Counter[tuple[str, tuple[int, ...]]]:
    """Count in how many gaps of a module each last name and shape exists."""
    return Counter(kind for names in gaps.values() for kind in set(signature(names, shapes)))


def _candidates(own: Gaps, file: Gaps, pairs: Mapping[str, str], ours: Shapes, theirs: Shapes) -> dict[str, list[str]]:
    """List for each tensor that is left what of the file has its last name and shape in the same module."""
    left: dict[Signature, list[str]] = defaultdict(list)
    for name in (name for names in file.values() for name in names if name not in pairs.values()):
        left[signature([name], theirs)].append(name)
    unpaired = (name for names in own.values() for name in names if name not in pairs)
    return {name: left[signature([name], ours)] for name in unpaired if signature([name], ours) in left}

"""Which tensor of a file is which of a network, told by order and shapes alone; never where there is a doubt."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

__all__ = ["Shapes", "pair_between", "pair_by_order"]

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of a network's tensors, in its order, each shared one once."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
FEWEST_MATRICES = 2  # one convolution of a common shape is no evidence


def pair_by_order(ours: Shapes, theirs: Shapes) -> dict[str, str] | None:
    """Pair two naming schemes of one architecture, or of a part of it such as its encoder.

    A part is the whole, the whole without its last module (a head for other classes), or the content of one module. A
    part of the file that makes up at least half of it, and a part of the network, are paired if their tensors have the
    same last names (``weight``, ``bias``) and shapes in the same order, if this fits in one way only, and if modules
    that look alike are told apart by ascending numbers or by the same words on both sides: a ``query`` and a ``key``
    have equal shapes, and nothing but their names tells which comes first.

    Args:
        ours: the network's.
        theirs: the file's.

    Returns:
        Name in the network -> name in the file; empty where nothing fits; ``None`` where a doubt remains.

    Example:
        >>> ours = {"down.0.weight": (4, 1, 3), "down.1.weight": (8, 4, 3), "head.weight": (2, 8, 1)}
        >>> theirs = {"conv1.weight": (4, 1, 3), "conv2.weight": (8, 4, 3), "fc.weight": (5, 8)}
        >>> pair_by_order(ours, theirs)
        {'down.0.weight': 'conv1.weight', 'down.1.weight': 'conv2.weight'}
    """
    learned = [name for name in theirs if not _is_statistic(name)]
    own_parts = _parts([name for name in ours if not _is_statistic(name)], ours)
    for part in sorted(_parts(learned, theirs), key=len, reverse=True):
        if 2 * len(part) < len(learned):
            break
        fits = [own for own in own_parts if _signature(own, ours) == _signature(part, theirs)]
        if fits:
            sure = len(fits) == 1 and _told_apart(fits[0], part, ours, theirs)
            return _with_statistics(dict(zip(fits[0], part, strict=True)), ours, theirs) if sure else None
    return {}


def pair_between(ours: Shapes, theirs: Shapes, matched: Mapping[str, str]) -> dict[str, str]:
    """Pair what is left between neighbours that are paired already, where last names and shapes agree.

    Args:
        ours: the network's.
        theirs: the file's.
        matched: name in the network -> name in the file.

    Returns:
        The new pairs, network -> file.

    Example:
        >>> ours = {"norm1.weight": (8,), "linear1.weight": (16, 8), "norm2.weight": (8,)}
        >>> theirs = {"norm1.weight": (8,), "fc1.weight": (16, 8), "norm2.weight": (8,)}
        >>> pair_between(ours, theirs, {"norm1.weight": "norm1.weight", "norm2.weight": "norm2.weight"})
        {'linear1.weight': 'fc1.weight'}
    """
    own_gaps = _gaps(ours, matched)
    pairs: dict[str, str] = {}
    for ends, part in _gaps(theirs, {name: name for name in matched.values()}).items():
        own = own_gaps.get(ends, [])
        if _signature(own, ours) == _signature(part, theirs) and _told_apart(own, part, ours, theirs):
            pairs |= dict(zip(own, part, strict=True))
    return pairs


def _parts(names: Sequence[str], shapes: Shapes) -> list[tuple[str, ...]]:
    """The whole, the whole without its last module, and each module's content; large enough to be told."""
    contents: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for module in _modules_around(name):
            contents[module].append(name)
    last = _module_of(names[-1]) if names else ""
    whole = [tuple(names), tuple(name for name in names if _module_of(name) != last)]
    parts = dict.fromkeys([*whole, *map(tuple, contents.values())])
    return [part for part in parts if sum(len(shapes[name]) > 1 for name in part) >= FEWEST_MATRICES]


def _told_apart(own: Sequence[str], part: Sequence[str], ours: Shapes, theirs: Shapes) -> bool:
    return _sure_of_siblings(own, part, ours) and _sure_of_siblings(part, own, theirs)


def _sure_of_siblings(names: Sequence[str], partners: Sequence[str], shapes: Shapes) -> bool:
    """Whether modules of one parent that look alike have ascending numbers, or the same words in their partners."""
    children: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, name in enumerate(names):
        for module in _modules_around(name):
            parent, _, child = module.rpartition(".")
            children[parent][child].append(index)
    for siblings in children.values():
        alike: dict[object, list[str]] = defaultdict(list)
        for child, indices in siblings.items():
            alike[_signature([names[index] for index in indices], shapes)].append(child)
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


def _gaps(shapes: Shapes, anchors: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """Names without an anchor, by the anchors before and after them; what lies outside of all anchors is left."""
    gaps: dict[tuple[str, str], list[str]] = {}
    before, gap = None, list[str]()
    for name in shapes:
        if name not in anchors:
            gap.append(name)
            continue
        if before is not None and gap:
            gaps[before, anchors[name]] = gap
        before, gap = anchors[name], []
    return gaps


def _with_statistics(pairs: Mapping[str, str], ours: Shapes, theirs: Shapes) -> dict[str, str]:
    """And the running statistics of paired norms, which one side may lack."""
    found = dict(pairs)
    for own, their in pairs.items():
        for statistic in STATISTICS:
            ends = f"{_module_of(own)}.{statistic}", f"{_module_of(their)}.{statistic}"
            if ends[0] in ours and ours[ends[0]] == theirs.get(ends[1]):
                found[ends[0]] = ends[1]
    return found


def _signature(names: Sequence[str], shapes: Shapes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name.rpartition(".")[2], shapes[name]) for name in names)


def _is_statistic(name: str) -> bool:
    return name.endswith(STATISTICS)


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _modules_around(name: str) -> Iterator[str]:
    parts = name.split(".")[:-1]
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))

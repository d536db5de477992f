"""Pair the tensors of two naming schemes by order and shape, where nothing is left in doubt."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from layertune.layers.names import common_path
from layertune.weights.structure import Leaf, Shapes, Signature, add_statistics, leaves, module_of, same_modules

__all__ = ["ByOrder", "pair_by_order"]

FEWEST_MATRICES = 2
"""One convolution of a common shape is no evidence that two networks are the same."""


@dataclass(frozen=True, kw_only=True)
class ByOrder:
    """What order and shapes say about two naming schemes.

    Attributes:
        pairs: Name in the network -> name in the file.
        neighbors: Name in the network -> name in the file, for the first and the last layer next to ``pairs`` whose
            shapes differ, as those of a first convolution for other input channels. They are no pairs.
        copies: The paths of the modules of the file that fit equally well, if there are several.
        doubtful: Whether something fits and it is not sure what belongs to what.
    """

    pairs: Mapping[str, str] = field(default_factory=dict)
    neighbors: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    doubtful: bool = False


@dataclass(frozen=True)
class _Run:
    """Consecutive layers of the network that agree with consecutive layers of the file."""

    own: int
    file: int
    length: int

    def overlaps(self, other: "_Run") -> bool:
        own, file = self.own - other.own, self.file - other.file
        return -self.length < own < other.length or -self.length < file < other.length

    def holds(self, own: int, file: int) -> bool:
        return own - self.own == file - self.file and 0 <= own - self.own < self.length


def pair_by_order(ours: Shapes, theirs: Shapes) -> ByOrder:
    """Pair two naming schemes of one architecture, or of a part of it such as its encoder.

    The longest run of consecutive layers (modules that own tensors) with the same last names (``weight``, ``bias``) and
    shapes on both sides is taken. It needs to hold at least half of the tensors of the smaller side, and

    - a layer that exists once on each side and so says where the run belongs, unless the run is all but the first and
      the last layer of both sides;
    - no such layer elsewhere that would move a part of the run;
    - the same modules around its tensors, see ``layertune.weights.structure.same_modules``.

    Args:
        ours: The shapes of the network's tensors by name.
        theirs: The shapes of the file's tensors by name.

    Returns:
        The pairs; without pairs where nothing fits or where a doubt remains.

    Example:
        >>> ours = {"down.0.weight": (4, 1, 3), "down.1.weight": (8, 4, 3), "head.weight": (2, 8, 1)}
        >>> theirs = {"conv1.weight": (4, 1, 3), "conv2.weight": (8, 4, 3), "fc.weight": (5, 8)}
        >>> pair_by_order(ours, theirs).pairs
        {'down.0.weight': 'conv1.weight', 'down.1.weight': 'conv2.weight'}
    """
    own, file = leaves(list(ours), ours), leaves(list(theirs), theirs)
    runs = [run for run in _runs(own, file) if _is_evidence(run, own, file)]
    if not runs:
        return ByOrder()
    sizes = [_size(run, own) for run in runs]
    best = [run for run, size in zip(runs, sizes, strict=True) if size == max(sizes)]
    if len(best) > 1:
        return ByOrder(doubtful=True, copies=_copies(best, file))
    run = _without_doubtful_ends(best[0], own, file)
    names = _names(own, run.own, run.length), _names(file, run.file, run.length)
    if not (_is_evidence(run, own, file) and _is_anchored(run, own, file) and same_modules(*names, ours, theirs)):
        return ByOrder(doubtful=True)
    return ByOrder(
        pairs=add_statistics(dict(zip(*names, strict=True)), ours, theirs), neighbors=_neighbors(run, own, file)
    )


def _runs(own: Sequence[Leaf], file: Sequence[Leaf]) -> list[_Run]:
    """Find all runs that cannot be made longer at either end."""
    places: dict[Signature, list[int]] = defaultdict(list)
    for index, leaf in enumerate(file):
        places[leaf.signature].append(index)
    runs: list[_Run] = []
    lengths: dict[int, int] = {}  # of the runs that end at the last layer of the network: place in the file -> length
    for index in range(len(own) + 1):
        ends = places.get(own[index].signature, []) if index < len(own) else []
        longer = {place: lengths.get(place - 1, 0) + 1 for place in ends}
        ended = [(place, length) for place, length in lengths.items() if place + 1 not in longer]
        runs += [_Run(index - length, place + 1 - length, length) for place, length in ended]
        lengths = longer
    return runs


def _without_doubtful_ends(run: _Run, own: Sequence[Leaf], file: Sequence[Leaf]) -> _Run:
    """Drop layers at the ends of a run that could as well be others next to it, of the same shapes.

    Where one side lacks one of two equal layers, the run ends with one of them, and may end with the wrong one.
    """
    while run.length and any(_ends_in_doubt(side, run, start) for side, start in ((own, run.own), (file, run.file))):
        run = _Run(run.own, run.file, run.length - 1)
    while run.length and any(_begins_in_doubt(side, run, start) for side, start in ((own, run.own), (file, run.file))):
        run = _Run(run.own + 1, run.file + 1, run.length - 1)
    return run


def _ends_in_doubt(side: Sequence[Leaf], run: _Run, start: int) -> bool:
    return _meet_in_doubt(side[start : start + run.length][::-1], side[start + run.length :])


def _begins_in_doubt(side: Sequence[Leaf], run: _Run, start: int) -> bool:
    return _meet_in_doubt(side[start : start + run.length], side[:start][::-1])


def _meet_in_doubt(inside: Sequence[Leaf], outside: Sequence[Leaf]) -> bool:
    """Whether the layers at the border equal each other, or two layers of a module that the border cuts.

    Args:
        inside: The layers of a run, from the border inwards.
        outside: The layers outside of it, from the border outwards.
    """
    if not outside:
        return False
    inner = {leaf.signature for leaf in takewhile(lambda leaf: _are_siblings(leaf, outside[0]), inside)}
    outer = {leaf.signature for leaf in takewhile(lambda leaf: _are_siblings(leaf, inside[0]), outside)}
    return inside[0].signature == outside[0].signature or bool(inner & outer)


def _are_siblings(first: Leaf, second: Leaf) -> bool:
    return module_of(module_of(first.names[0])) == module_of(module_of(second.names[0])) != ""


def _is_evidence(run: _Run, own: Sequence[Leaf], file: Sequence[Leaf]) -> bool:
    matrices = sum(len(shape) > 1 for leaf in own[run.own : run.own + run.length] for _, shape in leaf.signature)
    smaller = min(sum(len(leaf.names) for leaf in side) for side in (own, file))
    return matrices >= FEWEST_MATRICES and 2 * _size(run, own) >= smaller


def _is_anchored(run: _Run, own: Sequence[Leaf], file: Sequence[Leaf]) -> bool:
    """Whether layers that exist once on each side say that the run belongs where it is, and none says otherwise."""
    counts = [Counter(leaf.signature for leaf in side) for side in (own, file)]
    places = {leaf.signature: index for index, leaf in enumerate(file)}
    once = [
        (index, places[leaf.signature])
        for index, leaf in enumerate(own)
        if all(count[leaf.signature] == 1 for count in counts)
    ]
    moved = run.own - run.file
    others = [other for other in _runs(own, file) if other.own - other.file != moved and other.overlaps(run)]
    if any(other.holds(*anchor) for anchor in once for other in others):
        return False
    return any(run.holds(*anchor) for anchor in once) or _is_whole(run, len(own), len(file))


def _is_whole(run: _Run, own: int, file: int) -> bool:
    """Whether nothing but a first and a last layer lie outside of a run, on both sides alike."""
    behind = own - run.own - run.length, file - run.file - run.length
    return run.own == run.file <= 1 and max(behind) <= 1


def _neighbors(run: _Run, own: Sequence[Leaf], file: Sequence[Leaf]) -> dict[str, str]:
    """Pair the file's first layer before a run, and its last one behind it, with those of the network at these places.

    They have the same last names and other shapes, and lie in the network's module that holds the run.
    """
    module = common_path(_names(own, run.own, run.length))
    ends = []
    if run.file == 1 and run.own >= 1:
        ends.append((own[run.own - 1], file[0]))
    if len(file) - run.file - run.length == 1 and run.own + run.length < len(own):
        ends.append((own[run.own + run.length], file[-1]))
    return {
        name: partner
        for a, b in ends
        if [name for name, _ in a.signature] == [name for name, _ in b.signature]
        and common_path([*a.names, module]) == module
        for name, partner in zip(a.names, b.names, strict=True)
    }


def _copies(runs: Sequence[_Run], file: Sequence[Leaf]) -> tuple[str, ...]:
    if len({run.own for run in runs}) > 1:
        return ()
    return tuple(common_path(_names(file, run.file, run.length)) for run in runs)


def _names(side: Sequence[Leaf], start: int, length: int) -> list[str]:
    return [name for leaf in side[start : start + length] for name in leaf.names]


def _size(run: _Run, own: Sequence[Leaf]) -> int:
    return sum(len(leaf.names) for leaf in own[run.own : run.own + run.length])

"""Decide which tensor of a file goes where in a network: by name, by prefix, and by order where that is sure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from layertune.weights.enclosed import pair_enclosed
from layertune.weights.order import pair_by_order
from layertune.weights.prefixes import refuse_copies, use_best_prefix
from layertune.weights.report import listed
from layertune.weights.structure import Shapes
from layertune.weights.targets import Source, Targets

__all__ = ["BESIDE_MISFIT", "Matching", "match_by_guess", "match_by_name"]

BESIDE_MISFIT = "part of a layer with another shape"
"""Reason against a tensor of the right shape in a first or last layer that was paired by order and does not fit."""


@dataclass
class Matching:
    """What goes where, and what does not and why.

    Attributes:
        pairs: Name in the network -> name in the file.
        misfits: Name in the network -> name in the file, for what belongs together and differs in shape or kind.
        reasons: Name in the network -> why its tensor is left.
        candidates: Name in the network -> names in the file, for what could be one of them and is left out.
        by_order: The names in ``pairs`` that were paired by order and shape.
        prefix: How the file's names were changed.
        doubtful: Whether order and shapes fit in several ways.
        tensors: Name in the network -> tensor to load instead of the file's, for pairs that were adapted.
        adapted: Name in the network -> what was done to the tensor.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, list[str]] = field(default_factory=dict)
    by_order: tuple[str, ...] = ()
    prefix: str = ""
    doubtful: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)

    def adapt(self, own: str, tensor: Tensor, note: str) -> None:
        """Make a pair of what did not fit, by a tensor that does."""
        self.accept(own)
        self.tensors[own], self.adapted[own] = tensor, note

    def accept(self, own: str) -> None:
        """Make a pair of what was called a misfit."""
        self.pairs[own] = self.misfits.pop(own)
        del self.reasons[own]

    def leave_out(self, own: str, reason: str) -> None:
        """Undo a pair, or say another reason why there is none."""
        self.tensors.pop(own, None)
        self.adapted.pop(own, None)
        file = self.pairs.pop(own, None)
        if file is not None:
            self.misfits[own] = file
        self.reasons[own] = reason


def match_by_name(source: Source, targets: Targets) -> Matching:
    """Pair what has the same name and shape."""
    fit = targets.fit(source)
    return Matching(fit.pairs, fit.misfits, fit.reasons)


def match_by_guess(source: Source, targets: Targets, *, plain_is_chosen: bool = False) -> Matching:
    """Pair what has the same name, but for one prefix, and then what order and shape say surely.

    Args:
        source: The file's tensors; their names may be changed.
        targets: The tensors of the network that want a partner in the file.
        plain_is_chosen: Whether the user prefers names without a prefix to copies of the network.

    Raises:
        WeightsError: The file holds several copies of the network with other values.
    """
    prefix = use_best_prefix(source, targets, plain_is_chosen=plain_is_chosen)
    matching = match_by_name(source, targets)
    matching.prefix = prefix
    if 2 * len(matching.pairs) < min(len(source.shapes), len(targets.shapes)):
        _add_by_order(matching, source, targets)
    if matching.pairs and not matching.by_order:
        _add_enclosed(matching, source, targets)
    return matching


def _add_by_order(matching: Matching, source: Source, targets: Targets) -> None:
    """Pair by order where names say little; what few names agree must not contradict."""
    by_order = pair_by_order(targets.shapes, source.shapes)
    refuse_copies(by_order.copies)
    contradicts = _contradict(by_order.pairs, matching.pairs)
    matching.doubtful = by_order.doubtful or contradicts
    if not by_order.pairs or contradicts:
        return
    wrong = {own: targets.misfit(own, source.tensors[file]) for own, file in by_order.pairs.items()}
    pairs = {own: file for own, file in by_order.pairs.items() if wrong[own] is None and own not in matching.pairs}
    matching.pairs |= pairs
    matching.by_order = tuple(pairs)
    for own, file in by_order.neighbors.items():
        if own not in matching.pairs:
            reason = targets.misfit(own, source.tensors[file]) or BESIDE_MISFIT
            matching.misfits[own], matching.reasons[own] = file, reason


def _contradict(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Whether two ways to pair give one tensor two partners."""
    partners = {file: own for own, file in first.items()}
    return any(first.get(own, file) != file or partners.get(file, own) != own for own, file in second.items())


def _add_enclosed(matching: Matching, source: Source, targets: Targets) -> None:
    # What belongs together by name has one name on both sides here, fitting or not.
    known = {file: own for own, file in (matching.misfits | matching.pairs).items()}
    names: dict[str, str] = {}
    for file in source.shapes:
        names.setdefault(known.get(file, source.names[file]), file)
    offered: Shapes = {name: source.shapes[file] for name, file in names.items()}
    pairs, ambiguous = pair_enclosed(targets.shapes, offered)
    fitting = {own: names[name] for own, name in pairs.items() if not targets.misfit(own, source.tensors[names[name]])}
    matching.pairs |= fitting
    matching.by_order = tuple(fitting)
    matching.candidates = {own: [names[name] for name in candidates] for own, candidates in ambiguous.items()}
    for own, files in matching.candidates.items():
        matching.reasons.setdefault(own, f"ambiguous: it may be {listed(files)} of the file")

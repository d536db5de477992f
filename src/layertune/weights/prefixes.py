"""Find the prefix that is all that differs between the names of a file and those of a network."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from layertune.errors import WeightsError
from layertune.weights.report import listed
from layertune.weights.state_dicts import differ
from layertune.weights.targets import Source, Targets

__all__ = ["choose_copy", "refuse_copies", "use_best_prefix"]

LONGEST = 3
"""How many words of a path a prefix may have, as in ``teacher.backbone.model.``."""
NEARLY = 0.9
"""A copy of a network may lack a head, so it may fit so much of the best fit."""


@dataclass(frozen=True)
class _Change:
    """A prefix to drop from the file's names and one to add, and what fits then.

    Attributes:
        drop: The prefix that is dropped; other names stay as they are.
        add: The prefix that is added.
        names: Name in the file -> new name.
        pairs: Name in the network -> name in the file.
    """

    drop: str
    add: str
    names: Mapping[str, str]
    pairs: Mapping[str, str]


def choose_copy(source: Source, prefix: str) -> str:
    """Leave out all tensors of a file but those below a prefix, and drop the prefix.

    Args:
        source: The file's tensors; their names are changed.
        prefix: The prefix, with or without its last dot; empty for the names as they are.

    Returns:
        The change, as ``"teacher.* -> *"``; empty where nothing was changed.

    Raises:
        WeightsError: No name begins with the prefix.
    """
    if not prefix:
        return ""
    drop = prefix.removesuffix(".") + "."
    names = {file: name.removeprefix(drop) for file, name in source.names.items() if name.startswith(drop)}
    if not names:
        first_words = dict.fromkeys(f"{name.partition('.')[0]}." for name in source.names if "." in name)
        raise WeightsError(f"no name in the weights begins with {drop!r}; they begin with {listed(first_words)}")
    source.names = names
    return f"{drop}* -> *"


def refuse_copies(copies: Iterable[str]) -> None:
    """Ask for a choice among several copies of one network.

    Args:
        copies: The path of each copy in the file.

    Raises:
        WeightsError: There are at least two.
    """
    all_paths = [copy.removesuffix(".") for copy in copies]
    # The end of a copy may fit nearly as well as the whole copy.
    paths = [path for path in all_paths if not any(other and path.startswith(f"{other}.") for other in all_paths)]
    if len(paths) > 1:
        named = (repr(path) if path else "'' (the names as they are)" for path in paths)
        raise WeightsError(
            f"the weights hold {len(paths)} copies of the network that differ, at {listed(named)}, as student and "
            f"teacher do, or weights and their average (EMA); choose one, as with prefix={paths[-1]!r}, "
            "or --prefix where a command has it"
        )


def use_best_prefix(source: Source, targets: Targets, *, plain_is_chosen: bool = False) -> str:
    """Rename the file's tensors by the one prefix that fits at least half of the smaller side, if there is one.

    Names that fit as they are stay.

    Args:
        source: The file's tensors; their names are changed.
        targets: The tensors of the network that want a partner in the file.
        plain_is_chosen: Whether names that fit as they are may be used although the file holds a copy.

    Returns:
        The change, as ``"* -> swinViT.*"``; empty where nothing was changed.

    Raises:
        WeightsError: The file holds several copies of the network with other values.
    """
    enough = max(min(len(source.shapes), len(targets.tensors)) / 2, 1)
    changes = [change for change in _changes(source, targets, enough) if len(change.pairs) >= enough]
    if not changes:
        return ""
    plain = [change for change in changes if change.drop == change.add == ""]
    best = plain[0] if plain else max(changes, key=lambda change: len(change.pairs))
    rivals = [change for change in changes if len(change.pairs) >= NEARLY * len(best.pairs)]
    if not (plain and plain_is_chosen):
        refuse_copies(dict.fromkeys([best.drop, *(rival.drop for rival in rivals if _is_copy(rival, best, source))]))
    if plain or any(_is_elsewhere(rival, best) for rival in rivals):
        return ""
    # The rest of the file keeps its names: it may be a head beside the prefixed part.
    source.names = {**source.names, **best.names}
    return f"{best.drop}* -> {best.add}*"


def _changes(source: Source, targets: Targets, enough: float) -> Iterator[_Change]:
    for drop, add in product(_prefixes(source.names.values(), enough), _prefixes(targets.first_name, enough)):
        if drop == add != "":
            continue
        names = {file: add + name[len(drop) :] for file, name in source.names.items() if name.startswith(drop)}
        pairs: dict[str, str] = {}
        for file, name in names.items():
            own = targets.first_name.get(name)
            if own and targets.shapes[own] == tuple(source.tensors[file].shape):
                pairs.setdefault(own, file)
        yield _Change(drop, add, names, pairs)


def _is_copy(change: _Change, best: _Change, source: Source) -> bool:
    """Whether a change would load other values into the same tensors of the network."""
    partners = ((file, best.pairs.get(own, file)) for own, file in change.pairs.items())
    return change.drop != best.drop and any(
        source.place(one) != source.place(other) and differ(source.tensors[one], source.tensors[other])
        for one, other in partners
    )


def _is_elsewhere(change: _Change, best: _Change) -> bool:
    """Whether a change would load the same tensors of the file into another place of the network."""
    own = {file: name for name, file in best.pairs.items()}
    return any(own.get(file, name) != name for name, file in change.pairs.items())


def _prefixes(names: Iterable[str], enough: float) -> list[str]:
    """Return the prefixes of a few words that at least ``enough`` names share, and the empty one."""
    counts = {"": 0}
    for name in names:
        parts = name.split(".")[:-1]
        for depth in range(1, min(LONGEST, len(parts)) + 1):
            path = ".".join(parts[:depth]) + "."
            counts[path] = counts.get(path, 0) + 1
    return [path for path, count in counts.items() if not path or count >= enough]

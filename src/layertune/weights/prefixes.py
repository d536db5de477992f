"""Find the prefix that is all that differs between the names of a file and those of a network."""

from collections.abc import Iterable
from itertools import product

from layertune.weights.targets import Source, Targets

__all__ = ["use_best_prefix"]

LONGEST = 2
"""How many words of a path a prefix may have, as in ``backbone.model.``."""


def use_best_prefix(source: Source, targets: Targets) -> str:
    """Rename the file's tensors by the one prefix that fits at least half of the smaller side, if there is one.

    Names that fit as they are stay.

    Args:
        source: The file's tensors; their names are changed.
        targets: The network's tensors.

    Returns:
        The change, as ``"* -> swinViT.*"``; empty where nothing was changed.
    """
    enough = min(len(source.shapes), len(targets.tensors)) / 2
    if len(_fitting(source, targets, "", "")[1]) >= enough:
        return ""
    best: dict[frozenset[tuple[str, str]], tuple[dict[str, str], str]] = {}
    for drop, add in product(_prefixes(source.names.values(), enough), _prefixes(targets.first_name, enough)):
        changed, pairs = _fitting(source, targets, drop, add)
        most = max(map(len, best), default=0)
        if len(pairs) >= max(enough, most, 1):
            best = {key: value for key, value in best.items() if len(key) == len(pairs)}
            best[pairs] = changed, f"{drop}* -> {add}*"
    if len(best) != 1:
        return ""
    changed, change = next(iter(best.values()))
    # The rest of the file keeps its names: it may be a head beside the prefixed part.
    source.names = {**source.names, **changed}
    return change


def _fitting(
    source: Source, targets: Targets, drop: str, add: str
) -> tuple[dict[str, str], frozenset[tuple[str, str]]]:
    """Return the names with another prefix, and the pairs (network, file) that they give."""
    changed = {file: add + name[len(drop) :] for file, name in source.names.items() if name.startswith(drop)}
    owns = ((targets.first_name.get(name), file) for file, name in changed.items())
    return changed, frozenset(
        (own, file) for own, file in owns if own and targets.shapes[own] == tuple(source.tensors[file].shape)
    )


def _prefixes(names: Iterable[str], enough: float) -> list[str]:
    """Return the prefixes of one or two words that at least ``enough`` names share, and the empty one."""
    counts = {"": 0}
    for name in names:
        parts = name.split(".")[:-1]
        for depth in range(1, min(LONGEST, len(parts)) + 1):
            path = ".".join(parts[:depth]) + "."
            counts[path] = counts.get(path, 0) + 1
    return [path for path, count in counts.items() if not path or count >= enough]

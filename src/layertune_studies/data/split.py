"""The split of cases into training, validation and test cases."""

import re
from collections.abc import Sequence

import numpy as np

from layertune_studies.config.study import Split
from layertune_studies.errors import DataError

__all__ = ["split_cases"]


def split_cases(
    paths: Sequence[str], split: Split, *, groups: Sequence[str] | None = None
) -> tuple[list[int], list[int], list[int]]:
    """Return the numbers of the training, validation and test cases.

    Args:
        paths: The paths of the cases.
        split: The section of the study's file.
        groups: The name of each case's group, whose cases stay in one part; by default ``split.group`` says it.

    Raises:
        DataError: A path does not match the group, or a part gets no case.

    Example:
        >>> paths = [f"patient{number // 2}_{number % 2}.png" for number in range(8)]
        >>> parts = split_cases(paths, Split(folds=4, group="(patient[0-9]+)"))
        >>> [len(part) for part in parts], {paths[number][:8] for number in parts[2]}
        ([4, 2, 2], {'patient2'})
    """
    if split.counts is not None:
        return _dealt(len(paths), split.counts, split.seed)
    members: dict[str, list[int]] = {}
    for number, name in enumerate(groups or [_group(path, split.group) for path in paths]):
        members.setdefault(name, []).append(number)
    names = sorted(members)
    order = [names[index] for index in np.random.RandomState(split.seed).permutation(len(names)).tolist()]
    folds = [[number for name in order[part :: split.folds] for number in members[name]] for part in range(split.folds)]
    empty = [part for part, fold in enumerate(folds) if not fold]
    if empty:
        raise DataError(
            f"fold {empty[0]} of {split.folds} has no case: there are {len(names)} groups of cases; choose fewer folds"
        )
    validation = (split.fold + 1) % split.folds
    rest = [number for part, fold in enumerate(folds) if part not in (split.fold, validation) for number in fold]
    return rest, folds[validation], folds[split.fold]


def _dealt(count: int, counts: tuple[int, int, int], seed: int) -> tuple[list[int], list[int], list[int]]:
    if count < sum(counts):
        raise DataError(f"data.split.counts asks for {sum(counts)} cases, and there are {count}; ask for fewer")
    order = np.random.RandomState(seed).permutation(count).tolist()
    first, second, third = np.cumsum(counts).tolist()
    return order[:first], order[first:second], order[second:third]


def _group(path: str, pattern: str | None) -> str:
    if pattern is None:
        return path
    match = re.search(pattern, path)
    if match is None or not match.groups() or match[1] is None:
        raise DataError(f"data.split.group {pattern!r} has no group in {path}; write one, as in (patient[0-9]+)")
    return match[1]

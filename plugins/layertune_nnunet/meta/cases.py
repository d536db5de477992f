"""Choose the cases that meta batches come from, and those that are left for training."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from layertune.files import write_file
from layertune_nnunet.errors import MetaCasesError

__all__ = ["SEED", "Split", "choose_cases", "hold_out", "split"]

SEED = 12345
"""Seed of hold-outs; nnU-Net's own splits use the same."""


class Split(NamedTuple):
    """Name the cases for training and for meta batches.

    Attributes:
        training: The cases that the network is trained on.
        meta: The cases that the learning rates are learned from.
    """

    training: list[str]
    meta: list[str]


def choose_cases(source: str, training: Sequence[str], validation: Sequence[str], file: Path) -> Split:
    """Choose the cases to train on and the cases to learn rates from.

    Args:
        source: ``"training"`` takes the same cases for both. ``"holdout20"`` takes 20 % of the training cases for meta
            batches and trains on the others; any whole number of percent works. ``"validation"`` takes the validation
            cases.
        training: The training cases of the fold.
        validation: The validation cases of the fold.
        file: The file that keeps a hold-out.

    Returns:
        The cases for training and for meta batches.

    Raises:
        MetaCasesError: The source is none of these, or it leaves no cases for one of the two.

    Example:
        >>> choose_cases("training", ["a", "b"], ["c"], Path("unused.json"))
        Split(training=['a', 'b'], meta=['a', 'b'])
    """
    if source == "training":
        return Split(list(training), list(training))
    if source == "validation":
        if set(training) & set(validation):
            raise MetaCasesError(
                "meta_cases='validation' needs cases that are not trained on, but this fold trains on its validation "
                "cases; hold some cases out instead, as in _holdout20"
            )
        return Split(list(training), list(validation))
    percent = re.fullmatch(r"holdout(\d+)", source)
    if percent is None:
        raise MetaCasesError(f"meta_cases must be 'training', 'validation' or as in 'holdout20', not {source!r}")
    return hold_out(training, int(percent[1]), file)


def hold_out(training: Sequence[str], percent: int, file: Path) -> Split:
    """Hold out a part of the training cases, and keep the split in a file for the next time.

    nnU-Net keeps its own splits in the same way.

    Args:
        training: The training cases of the fold.
        percent: How many percent of them are held out.
        file: JSON file with the lists ``training`` and ``meta``. It is read if it exists, and written if not.

    Returns:
        The cases for training, and the held-out cases for meta batches.

    Raises:
        MetaCasesError: There are too few cases, the file splits other cases, or it cannot be read or written.
    """
    try:
        if not file.exists():
            _write(file, split(training, percent))
        content = json.loads(file.read_text(encoding="utf-8"))
        stored_split = Split(sorted(content["training"]), sorted(content["meta"]))
    except OSError as error:
        raise MetaCasesError(
            f"the split of {percent} % is kept in {file}, which cannot be used ({error}); set nnUNet_preprocessed to a "
            "folder that you may write to, or take meta batches from the training cases (no suffix)"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise MetaCasesError(
            f"{file} holds no split ({type(error).__name__}: {error}); delete or correct it"
        ) from error
    if sorted([*stored_split.training, *stored_split.meta]) != sorted(training) or not all(stored_split):
        raise MetaCasesError(
            f"{file} splits {sum(map(len, stored_split))} cases, which are not the {len(training)} training "
            "cases of this fold; delete it, and a new split is drawn"
        )
    return stored_split


def split(cases: Sequence[str], percent: int) -> Split:
    """Draw a seeded split, which does not depend on the order of the cases.

    Args:
        cases: The cases to split.
        percent: How many percent of them are for meta batches.

    Raises:
        MetaCasesError: One of the two parts would be empty.

    Example:
        >>> split([f"case_{number}" for number in range(5)], 20)
        Split(training=['case_0', 'case_1', 'case_2', 'case_3'], meta=['case_4'])
    """
    held = round(len(cases) * percent / 100)
    if not 0 < held < len(cases):
        raise MetaCasesError(
            f"{percent} % of {len(cases)} training cases are {held}, but training and meta batches need at least one "
            "case each; take more cases, another percentage, or the training cases for both (no suffix)"
        )
    order = np.random.default_rng(SEED).permutation(sorted(cases)).tolist()
    return Split(sorted(order[held:]), sorted(order[:held]))


def _write(file: Path, cases: Split) -> None:
    # Several processes may write this file at once. All write the same, and none reads half a file.
    write_file(file, json.dumps(cases._asdict(), indent=4))

"""Which cases the meta batches come from, and which are left for training."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from layertune_nnunet.errors import MetaCasesError

__all__ = ["SEED", "Split", "choose_cases", "hold_out", "split"]

SEED = 12345
"""As nnU-Net's own splits have it."""


class Split(NamedTuple):
    """Cases by what they are for; training and validation cases are not shared but with ``fold all``.

    Attributes:
        training: what the network is trained on.
        meta: what the learning rates are learned from.
    """

    training: list[str]
    meta: list[str]


def choose_cases(source: str, training: Sequence[str], validation: Sequence[str], file: Path) -> Split:
    """The cases to train on and those to learn rates from.

    Args:
        source: ``"training"`` (the same cases), ``"holdout20"`` (20 % of the training cases, then not trained on; any
            whole number of percent) or ``"validation"``.
        training: the fold's training cases.
        validation: the fold's validation cases.
        file: where a hold-out is kept.

    Raises:
        MetaCasesError: the source is none of these, or has no cases to give.

    Example:
        >>> choose_cases("training", ["a", "b"], ["c"], Path("unused.json"))
        Split(training=['a', 'b'], meta=['a', 'b'])
    """
    if source == "training":
        return Split(list(training), list(training))
    if source == "validation":
        if set(training) & set(validation):
            raise MetaCasesError(
                "meta_cases='validation' asks for cases that are not trained on, and this fold trains on its "
                "validation cases; hold some out instead, as in _holdout20"
            )
        return Split(list(training), list(validation))
    percent = re.fullmatch(r"holdout(\d+)", source)
    if percent is None:
        raise MetaCasesError(f"meta_cases is 'training', 'validation', or as in 'holdout20', not {source!r}")
    return hold_out(training, int(percent[1]), file)


def hold_out(training: Sequence[str], percent: int, file: Path) -> Split:
    """Split a part off the training cases, once: the file that keeps it is read the next time, as nnU-Net's splits are.

    Args:
        training: the fold's training cases.
        percent: how many of them are held out.
        file: JSON with the lists ``training`` and ``meta``.

    Raises:
        MetaCasesError: too few cases, the file was made of other cases, or it cannot be written or read.
    """
    try:
        if not file.exists():
            _write(file, split(training, percent))
        found = json.loads(file.read_text(encoding="utf-8"))
        kept = Split(sorted(found["training"]), sorted(found["meta"]))
    except OSError as error:
        raise MetaCasesError(
            f"the split of {percent} % is kept in {file}, which cannot be used ({error}); let nnUNet_preprocessed name "
            "a folder that you may write to, or take meta batches from the training cases (no suffix)"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise MetaCasesError(f"{file} holds no split ({type(error).__name__}: {error}); delete or mend it") from error
    if sorted([*kept.training, *kept.meta]) != sorted(training) or not all(kept):
        raise MetaCasesError(
            f"{file} splits {len(kept.training) + len(kept.meta)} cases, which are not the {len(training)} training "
            "cases that this fold has now; delete it, and a new one is made"
        )
    return kept


def split(cases: Sequence[str], percent: int) -> Split:
    """A seeded split, the same for each order of the cases.

    Raises:
        MetaCasesError: one of the two parts would be empty.

    Example:
        >>> split([f"case_{number}" for number in range(5)], 20)
        Split(training=['case_0', 'case_1', 'case_2', 'case_3'], meta=['case_4'])
    """
    held = round(len(cases) * percent / 100)
    if not 0 < held < len(cases):
        raise MetaCasesError(
            f"{percent} % of {len(cases)} training cases are {held}, and both training and the learning rates need "
            "at least one; take more cases, another percentage, or the training cases themselves (no suffix)"
        )
    order = np.random.default_rng(SEED).permutation(sorted(cases)).tolist()
    return Split(sorted(order[held:]), sorted(order[:held]))


def _write(file: Path, cases: Split) -> None:
    # Folds and processes may come here at once; each writes the same, and none reads half a file.
    whole = file.with_name(f".{file.name}.{os.getpid()}")
    whole.write_text(json.dumps(cases._asdict(), indent=4), encoding="utf-8")
    whole.replace(file)

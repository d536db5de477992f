"""The cases of a study: read, checked, split, and drawn for each seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from layertune_studies.config.sets import SETS, require_folder
from layertune_studies.config.study import Data
from layertune_studies.data.case import Case
from layertune_studies.data.near_copies import near_copies
from layertune_studies.data.split import split_cases
from layertune_studies.errors import DataError

__all__ = ["Cases", "LabelledCases", "LazyCases", "checked", "class_count", "draw", "load_cases"]

Task = Literal["classification", "segmentation"]
Parts = tuple[Sequence[int], Sequence[int], Sequence[int]]
PARTS = ("train", "val", "test")
# Bytes of cases that stay in memory, of those that are read when they are asked for: two data sets of a process, which
# is what the trials of a study may hold, then leave half of a small machine's 8 GiB to networks and to reading.
CACHE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Cases:
    """All cases of a study.

    Attributes:
        train: The cases from which labelled cases are drawn.
        validation: The cases that choose settings.
        test: The cases that are reported on.
        classes: Number of classes.
        task: ``"classification"`` if labels are whole numbers, ``"segmentation"`` if they are maps of the image's size.
        shape: Shape of an image as the network gets it in training, channels first.
        paths: The file of each case, by its number; made cases have none.
    """

    train: Sequence[Case]
    validation: Sequence[Case]
    test: Sequence[Case]
    classes: int
    task: Task
    shape: tuple[int, ...]
    paths: Sequence[Path] = ()


@dataclass(frozen=True)
class LabelledCases:
    """The labelled cases of one seed.

    Attributes:
        train: The cases of the training batches.
        meta: The cases of the meta batches; none is a validation or test case.
    """

    train: Sequence[Case]
    meta: Sequence[Case]


class LazyCases(Sequence[Case]):
    """Cases that are read and checked when they are asked for.

    Args:
        read: Reads a case by its number.
        numbers: The numbers of the cases of this part.
    """

    def __init__(self, read: Callable[[int], Case], numbers: Sequence[int]) -> None:
        self._read = read
        self.numbers = list(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return LazyCases(self._read, self.numbers[index])
        return self._read(self.numbers[index])

    def chosen(self, indices: Sequence[int]) -> "LazyCases":
        """Return the cases at some indices, in their order."""
        return LazyCases(self._read, [self.numbers[index] for index in indices])


def load_cases(data: Data, root: Path | None) -> Cases:
    """Read and split a data set.

    Args:
        data: The section of the study's file.
        root: The folder of all data.

    Raises:
        DataError: The data are not there (the message holds the set's page), a part has no case, a file cannot be read,
            an image has another size or number of channels than the others or values that are not finite, or a label is
            out of range.
    """
    data_set = SETS[data.set]
    place = require_folder(data.set, root, data.folder)
    classes = class_count(data)
    from layertune_studies.data import readers as study_readers

    read = getattr(study_readers, f"read_{data_set.kind}")
    case_of, paths, parts = read(data, place, data_set)
    check = _Check(data, classes, place)
    numbers = _split(data, case_of, paths, parts)
    for name, part in zip(PARTS, numbers, strict=True):
        if not part:
            raise DataError(f"the {name} part of {data.set} has no case, of {len(paths)}; choose fewer folds")

    def read_case(number: int) -> Case:
        return check(case_of(number), paths[number])

    first = read_case(numbers[0][0])
    case = lru_cache(maxsize=max(1, CACHE_BYTES // _bytes(first)))(read_case)
    train, validation, test = (LazyCases(case, part) for part in numbers)
    return Cases(
        train,
        validation[: data.validation],
        test[: data.test],
        classes,
        "segmentation" if data_set.volumes else "classification",
        (first.image.shape[0], *(data.patch or first.image.shape[1:])),
        paths,
    )


def _split(data: Data, case_of: Callable[[int], Case], paths: Sequence[Path], parts: Parts | None) -> Parts:
    """Return the numbers of the training, validation and test cases: the set's own split, or one by the study."""
    names, alike = [str(path) for path in paths], data.split.alike
    if alike is None:
        return parts or split_cases(names, data.split)
    if parts is not None:
        raise DataError(f"{data.set} comes with its own split, so near copies cannot be moved; leave out split.alike")
    first = near_copies((case_of(number).image for number in range(len(names))), alike)
    return split_cases(names, data.split, groups=[names[number] for number in first])


def class_count(data: Data) -> int:
    """Return the number of classes of a data set, which follows from the study's file alone."""
    return 2 if data.binary else data.classes or len(SETS[data.set].classes or ())


def draw(
    cases: Cases,
    labelled: int | Literal["all"],
    *,
    seed: int,
    reserved: int = 0,
    holdout: float | None = None,
    disjoint: bool = False,
) -> LabelledCases:
    """Draw the labelled cases of a seed from the training cases, each at most once.

    Args:
        cases: All cases.
        labelled: The number of labelled cases.
        seed: The seed.
        reserved: The number of training cases that are kept for pre-training, and left out.
        holdout: Share of the labelled cases that is kept for meta batches.
        disjoint: Whether the seeds take their cases one after the other, so that no two of them share a case.

    Raises:
        DataError: There are fewer cases, or a share of them is not even one case.
    """
    available = len(cases.train) - reserved
    count = available if labelled == "all" else labelled
    if not 0 < count <= available:
        left_out = f", after {reserved} for pre-training" if reserved else ""
        raise DataError(f"{count} labelled cases were asked for, and there are {available} training cases{left_out}")
    if disjoint and (seed + 1) * count > available:
        raise DataError(
            f"{seed + 1} seeds with {count} labelled cases of their own each need {(seed + 1) * count} training cases, "
            f"and there are {available}; ask for fewer, or use draw: random"
        )
    shuffled = np.random.RandomState(seed).permutation(available)
    order = np.arange(available)[seed * count :] if disjoint else shuffled
    numbers = [reserved + int(index) for index in order[:count]]
    held = round(count * holdout) if holdout else 0
    if holdout and not 0 < held < count:
        raise DataError(f"a holdout of {holdout:g} of {count} labelled cases leaves a part with no case")
    assert isinstance(cases.train, LazyCases)
    train = cases.train.chosen(numbers[held:])
    return LabelledCases(train, cases.train.chosen(numbers[:held]) if held else train)


def checked(case: Case, where: str, *, classes: int, like: tuple[int, ...] | None, sizes: bool) -> Case:
    """Check a case and return it.

    Args:
        case: The image and its label.
        where: The file of the case, for messages.
        classes: Number of classes; labels are smaller.
        like: Shape of the first image, channels first, or None for the first one.
        sizes: Whether its size has to be that of the first image, because nothing crops it.

    Raises:
        DataError: The case cannot be used; the message says why and what to do.

    Example:
        >>> checked(Case(torch.zeros(1, 4, 4), torch.tensor(2)), "a.png", classes=2, like=None, sizes=True)
        Traceback (most recent call last):
        layertune_studies.errors.DataError: a.png: its label is 2, and the 2 classes are counted from 0 to 1
    """
    image, label = case.image, case.label
    if not torch.isfinite(image).all():
        raise DataError(f"{where}: {int((~torch.isfinite(image)).sum())} of its values are not finite; repair the file")
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= classes:
        out = low if low < 0 else high
        raise DataError(f"{where}: its label is {out}, and the {classes} classes are counted from 0 to {classes - 1}")
    shape = tuple(image.shape)
    if like is not None and shape[0] != like[0]:
        raise DataError(f"{where}: it has {shape[0]} channels, and the first image has {like[0]}")
    if like is not None and (len(shape) != len(like) or (sizes and shape != like)):
        raise DataError(f"{where}: its size is {shape[1:]}, and that of the first image {like[1:]}; give data.size")
    if label.ndim and label.shape[1:] != image.shape[1:]:
        raise DataError(f"{where}: its image has the size {shape[1:]}, and its label {tuple(label.shape[1:])}")
    return case


class _Check:
    """Checks each case, and whether its shape is that of the first one."""

    def __init__(self, data: Data, classes: int, place: Path) -> None:
        self.data, self.classes, self.place = data, classes, place
        self.like: tuple[int, ...] | None = None

    def __call__(self, case: Case, path: Path) -> Case:
        if self.data.binary:
            case = Case(case.image, (case.label > 0).to(case.label.dtype))
        checked(case, str(path), classes=self.classes, like=self.like, sizes=self.data.patch is None)
        self.like = self.like or tuple(case.image.shape)
        return case


def _bytes(case: Case) -> int:
    """Return the bytes that a case takes in memory; a crop keeps the whole image that it was cut from."""
    return sum(tensor.untyped_storage().nbytes() for tensor in (case.image, case.label))

"""The cases and batches of a study, read and made once a process, since many trials share them."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from layertune_studies.config.data import Data
from layertune_studies.config.study import Study
from layertune_studies.data.batches import META, TRAINING, batch_key, batch_maker
from layertune_studies.data.case import Batch, Case
from layertune_studies.data.cases import Cases, draw, load_cases
from layertune_studies.training.pretraining import reserved_cases

__all__ = ["study_cases", "trial_batches"]

HELD_BATCHES = 2**28  # bytes of training batches, and as many of meta batches, that stay in memory


def study_cases(study: Study, root: Path | None) -> Cases:
    """Return the cases of a study.

    Raises:
        DataError: The cases are not there, or cannot be used.
    """
    return _cases(_data_of_cases(study.data), root)


def _data_of_cases(data: Data) -> str:
    """Return the part of the data section that says which cases there are, as a key."""
    return data.model_dump_json(exclude={"labelled", "holdout", "augment", "reserved", "draw"})


@lru_cache(maxsize=2)
def _cases(data: str, root: Path | None) -> Cases:
    return load_cases(Data.model_validate_json(data), root)


def trial_batches(
    study: Study, root: Path | None, labelled: int | Literal["all"], seed: int
) -> tuple[Callable[[int], Batch], Callable[[int], Batch], int]:
    """Return what makes the training and the meta batch of a step, and the number of training cases.

    The trials of a seed, which run one after the other, all see the same batches, so that each is made once.

    Args:
        study: The study, which says how the data is split and augmented.
        root: The folder of all data.
        labelled: The number of labelled cases.
        seed: The seed of the trial.

    Raises:
        DataError: The cases are not there, or are too few.
    """
    data = study.data.model_dump_json()
    return _batches(data, root, labelled, seed, study.seed, study.budget.batch, reserved_cases(study))


@lru_cache(maxsize=1)
def _batches(
    data: str,
    root: Path | None,
    labelled: int | Literal["all"],
    seed: int,
    study_seed: int | None,
    count: int,
    reserved: int,
) -> tuple[Callable[[int], Batch], Callable[[int], Batch], int]:
    config = Data.model_validate_json(data)
    cases = draw(
        _cases(_data_of_cases(config), root),
        labelled,
        seed=seed,
        reserved=reserved,
        holdout=config.holdout,
        disjoint=config.draw == "disjoint",
    )

    def maker(part: Sequence[Case], purpose: int) -> Callable[[int], Batch]:
        key = partial(batch_key, study_seed, seed, purpose)
        return batch_maker(part, config, count=count, key=key, augment=purpose == TRAINING, hold=HELD_BATCHES)

    return maker(cases.train, TRAINING), maker(cases.meta, META), len(cases.train)

"""Successive halving: all settings of a method for a part of the budget, the better ones of them for more."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from layertune_studies.study_config import Study
from layertune_studies.study_methods import BiDirectionalMethod, Method
from layertune_studies.study_trial import Trial, ranking

__all__ = ["Finding", "is_searched", "successive_halving"]

Results = Mapping[Trial, dict[str, Any]]
ROUNDS = (16, 1)  # what the budget is divided by
KEPT = 8  # one of so many goes on


class Finding(NamedTuple):
    """What a search comes to.

    Attributes:
        results: of the trials that had the whole budget.
        passes: forward and backward passes of all rounds together.
    """

    results: Results
    passes: float


def is_searched(method: Method) -> bool:
    """Whether a method's settings are searched, not all trained to the end."""
    return isinstance(method, BiDirectionalMethod) and method.search == "halving"


def successive_halving(
    study: Study, trials: Sequence[Trial], results_of: Callable[[Study, Sequence[Trial]], Results | None]
) -> Finding | None:
    """Search the settings of one method on one seed (Jamieson and Talwalkar, AISTATS 2016).

    All are trained with a sixteenth of the budget, and the better eighth of them with all of it, each time from the
    beginning and through a whole schedule: a network in the middle of a long schedule says little of how it would end.
    Compared is by validation cases. That costs a fifth of training every setting to the end, and depends on nothing but
    the seed, on one machine or many. With more rounds fewer settings have the whole budget at the same cost; in
    development that found worse ones.

    Args:
        study: as its file says.
        trials: one for each setting; their rate is known.
        results_of: the results of trials under a round's study; ``None`` where they are not there.

    Returns:
        What was found, or ``None`` as soon as ``results_of`` gives none.
    """
    passes: dict[str, float] = {}
    results: Results | None = None
    for part in ROUNDS:
        if part > 1 and len(trials) == 1:
            continue  # nothing to choose from
        round_study = _with_part(study, part)
        results = results_of(round_study, trials)
        if results is None:
            return None
        passes |= {trial.name(round_study): float(results[trial]["passes"]) for trial in trials}
        trials = _best(study, results) if part > 1 else trials
    assert results is not None  # the last round is never left out
    return Finding(results, sum(passes.values()))


def _with_part(study: Study, part: int) -> Study:
    """The study with a part of its budget; only networks that had all of it are kept."""
    budget = study.budget.model_copy(update={"amount": max(1, study.budget.amount // part)})
    return study.model_copy(update={"budget": budget, "keep_networks": study.keep_networks and part == 1})


def _best(study: Study, results: Results) -> list[Trial]:
    ranked = sorted(results, key=lambda trial: ranking(study, results[trial]["validation"]), reverse=True)
    return ranked[: math.ceil(len(ranked) / KEPT)]

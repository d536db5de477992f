"""Successive halving: all settings of a method for a part of the budget, the better ones of them for all of it.

Jamieson and Talwalkar (AISTATS 2016). In each round the settings that are left are trained from the beginning and
through a whole schedule: the score in the middle of a long schedule says little about its end. Validation cases decide.
The result depends on the seed alone, on one machine or many.

The many settings of a bi-directional method are searched in two rounds. All are trained with a sixteenth of the budget,
and the better eighth of them with all of it, which costs a fifth of training all settings with the whole budget. With
more rounds, fewer settings get the whole budget at the same cost; in development that found worse settings.

The search of other methods costs three trainings. Up to three settings are all trained with the whole budget: the
validation cases are in no training, so the best network is the result, and no final training follows. Of more settings
the first round divides one training, and the best two get the whole budget.
"""

import math
from collections.abc import Mapping
from typing import Any

from layertune.policies.choosing import Round, leaders
from layertune_studies.config.methods import BiDirectionalMethod, Method
from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial, ranking

__all__ = ["better", "is_searched", "plan", "rounds"]

SHARE = 1 / 16  # of the budget, in the first round of many settings
FACTOR = 8  # one of so many settings gets to the next round
TRAININGS = 3  # the cost of the search of a few settings


def is_searched(method: Method) -> bool:
    """Return whether a method's settings are searched, not all trained with the whole budget."""
    return getattr(method, "search", "grid") == "halving"


def plan(method: Method, count: int) -> tuple[Round, ...]:
    """Return the rounds in which a method's settings are searched. The last round has the whole budget.

    Args:
        method: The method.
        count: The number of its settings, each rate counted as one.

    Example:
        >>> [one.count for one in plan(BiDirectionalMethod(kind="bi-directional"), 45)]
        [45, 6]
    """
    if isinstance(method, BiDirectionalMethod):
        return Round(count, SHARE), Round(math.ceil(count / FACTOR), 1.0)
    return (Round(count, 1.0),) if count <= TRAININGS else (Round(count, 1 / count), Round(TRAININGS - 1, 1.0))


def rounds(study: Study, method: Method, count: int) -> list[tuple[Study, int]]:
    """Return the study with the budget of each round, and the number of trials in it; only the last keeps networks.

    Args:
        study: The study.
        method: The method that is searched.
        count: The number of its trials on one seed.

    Example:
        >>> from layertune_studies.config.methods import InverseSizeMethod
        >>> from layertune_studies.config.study import Budget
        >>> study = Study.model_construct(budget=Budget(amount=240), keep_networks=False)
        >>> [(one.budget.amount, count) for one, count in rounds(study, InverseSizeMethod(kind="inverse_size"), 5)]
        [(48, 5), (240, 2)]
    """
    return [(_with_share(study, one.share), one.count) for one in plan(method, count)]


def better(study: Study, results: Mapping[Trial, Mapping[str, Any]], count: int) -> list[Trial]:
    """Return the trials that get to the next round, the best first."""
    return leaders({trial: -ranking(study, result["validation"]) for trial, result in results.items()}, count)


def _with_share(study: Study, share: float) -> Study:
    # A tenth of 240 has to be 24, though 1/10 is rounded.
    amount = max(1, int(study.budget.amount * share + 1e-9))
    budget = study.budget.model_copy(update={"amount": amount})
    return study.model_copy(update={"budget": budget, "keep_networks": study.keep_networks and budget == study.budget})

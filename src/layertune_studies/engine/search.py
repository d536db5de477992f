"""Successive halving: all settings of a method for a part of the budget, the better ones of them for all of it.

Jamieson and Talwalkar (AISTATS 2016), in two rounds. All settings are trained with a sixteenth of the budget, and the
better eighth of them with all of it, each time from the beginning and through a whole schedule: the score in the middle
of a long schedule says little about its end. Validation cases decide. The search costs a fifth of training all settings
with the whole budget, and its result depends on the seed alone, on one machine or many. With more rounds, fewer
settings get the whole budget at the same cost; in development that found worse settings.
"""

import math
from collections.abc import Mapping
from typing import Any

from layertune_studies.config.methods import BiDirectionalMethod, Method
from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial, ranking

__all__ = ["better", "is_searched", "rounds", "survivors"]

PARTS = (16, 1)  # divisors of the budget in each round
FACTOR = 8  # one of so many settings gets to the next round


def is_searched(method: Method) -> bool:
    """Return whether a method's settings are searched, not all trained with the whole budget."""
    return isinstance(method, BiDirectionalMethod) and method.search == "halving"


def rounds(study: Study) -> list[Study]:
    """Return the study with the budget of each round; only the last round keeps networks.

    Example:
        >>> from layertune_studies.config.study import Budget
        >>> study = Study.model_construct(budget=Budget(amount=240), keep_networks=False)
        >>> [one.budget.amount for one in rounds(study)]
        [15, 240]
    """
    amounts = [max(1, study.budget.amount // part) for part in PARTS]
    budgets = [study.budget.model_copy(update={"amount": amount}) for amount in amounts]
    return [
        study.model_copy(update={"budget": budget, "keep_networks": study.keep_networks and budget == budgets[-1]})
        for budget in budgets
    ]


def survivors(count: int) -> int:
    """Return how many of a number of trials get to the next round, at least one.

    Example:
        >>> survivors(45), survivors(3)
        (6, 1)
    """
    return math.ceil(count / FACTOR)


def better(study: Study, results: Mapping[Trial, Mapping[str, Any]]) -> list[Trial]:
    """Return the trials that get to the next round, the best first."""
    ranked = sorted(results, key=lambda trial: ranking(study, results[trial]["validation"]), reverse=True)
    return ranked[: survivors(len(ranked))]

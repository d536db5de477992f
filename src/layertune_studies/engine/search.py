"""Successive halving: all settings of a method for a part of the budget, the better ones of them for all of it.

Jamieson and Talwalkar (AISTATS 2016), in two rounds. All settings are trained with a sixteenth of the budget, and the
better eighth of them with all of it, each time from the beginning and through a whole schedule: a network in the middle
of a long schedule says little of how it would end. Compared is by validation cases. That costs a fifth of training all
settings to the end, and depends on nothing but the seed, on one machine or many. With more rounds fewer settings have
the whole budget at the same cost; in development that found worse ones.
"""

import math
from collections.abc import Mapping
from typing import Any

from layertune_studies.config.methods import BiDirectionalMethod, Method
from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial, ranking

__all__ = ["better", "is_searched", "rounds", "survivors"]

PARTS = (16, 1)  # what the budget is divided by in each round
KEPT = 8  # one of so many goes on


def is_searched(method: Method) -> bool:
    """Whether a method's settings are searched, not all trained to the end."""
    return isinstance(method, BiDirectionalMethod) and method.search == "halving"


def rounds(study: Study) -> list[Study]:
    """The study with the budget of each round; networks are kept of the last one alone.

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
    """How many of so many trials go on, at least one.

    Example:
        >>> survivors(45), survivors(3)
        (6, 1)
    """
    return math.ceil(count / KEPT)


def better(study: Study, results: Mapping[Trial, Mapping[str, Any]]) -> list[Trial]:
    """The trials that go on, the best first."""
    ranked = sorted(results, key=lambda trial: ranking(study, results[trial]["validation"]), reverse=True)
    return ranked[: survivors(len(ranked))]

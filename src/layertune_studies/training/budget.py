"""The budget of a training in steps."""

from layertune_studies.config.methods import MetaLRMethod, Method, Untuned
from layertune_studies.config.study import Study

__all__ = ["passes_of_step", "steps_of"]


def passes_of_step(method: Method) -> float:
    """Return the number of forward and backward passes of a step.

    Example:
        >>> passes_of_step(MetaLRMethod(kind="metalr", mode="every", every=10))
        1.1
    """
    if not isinstance(method, MetaLRMethod) or method.mode == "streaming":
        return 1
    return 2 if method.mode == "exact" else 1 + 1 / method.every


def steps_of(study: Study, method: Method) -> int:
    """Return the number of steps of a method's training within the budget: 0 for none, else at least 1."""
    if isinstance(method, Untuned):
        return 0
    amount = method.amount or study.budget.amount
    # 1e-9, because a quotient such as 110 / 1.1 may be rounded to just below the whole number that it is.
    return amount if study.budget.unit == "steps" else max(1, int(amount / passes_of_step(method) + 1e-9))

"""Optimizers may be given a closure, which makes the gradients within the step."""

from collections.abc import Callable
from typing import Any

__all__ = ["call_before_update"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def call_before_update(ready: Callable[[], None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """Call ``ready`` once the gradients of a step are there: at once, or, with a closure, when that has made them.

    Args:
        ready: what has to happen before the parameters change.
        args: of ``Optimizer.step``, the optimizer itself first, as its pre-hooks get them.
        kwargs: of the same.

    Returns:
        What the pre-hook returns: new arguments where there is a closure.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        ready()
        return None

    def closure_then_ready() -> Any:
        loss = closure()
        ready()
        return loss

    kwargs = {key: value for key, value in kwargs.items() if key != "closure"}
    return (args[0], closure_then_ready, *args[2:]), kwargs

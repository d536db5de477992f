"""Multiply the learning rates of param groups for the length of one step."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from layertune.errors import OptimizerError

__all__ = ["call_before_update", "group_layer_names", "multiply_lrs", "require_single_multiplier", "restore_lrs"]


def multiply_lrs(groups: Sequence[dict[str, Any]], factors: Sequence[float]) -> list[Any]:
    """Multiply each group's ``lr`` and return what stood there.

    A tensor ``lr`` is replaced, not changed in place: several groups may share one tensor.

    Args:
        groups: param groups of an optimizer.
        factors: one factor a group.

    Returns:
        The rates before, for ``restore_lrs``.
    """
    before = [group["lr"] for group in groups]
    for group, factor in zip(groups, factors, strict=True):
        group["lr"] = group["lr"] * factor
    return before


def restore_lrs(groups: Sequence[dict[str, Any]], before: Sequence[Any]) -> None:
    """Put back what ``multiply_lrs`` returned."""
    for group, lr in zip(groups, before, strict=True):
        group["lr"] = lr


def group_layer_names(groups: Sequence[dict[str, Any]]) -> list[str]:
    """The layer of each param group: its ``"layer"``, else its ``"name"``, else the group stands for itself."""
    return [str(group.get("layer", group.get("name", f"group {number}"))) for number, group in enumerate(groups)]


def require_single_multiplier(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose learning rates are multiplied already, by a ``MetaLR`` or a replay.

    Each puts back the rates that it found; two would find each other's.

    Raises:
        OptimizerError: naming what is attached.
    """
    owners = [getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_pre_hooks.values()]
    attached = [type(owner).__name__ for owner in owners if getattr(type(owner), "multiplies_lrs", False)]
    if attached:
        raise OptimizerError(
            f"a {attached[0]} is attached to this optimizer already, and two would multiply its learning rates twice; "
            "keep the first, or call its detach() before"
        )


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

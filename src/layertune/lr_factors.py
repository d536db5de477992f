"""Multiply the learning rates of param groups for the length of one step."""

from collections.abc import Sequence
from typing import Any

__all__ = ["multiply_lrs", "restore_lrs"]


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

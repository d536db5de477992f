"""When a training phase ends: a metric that no longer improves, a fixed budget, or whichever comes first."""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

from layertune.errors import AlchemyError

__all__ = ["DEFAULT_IDENTIFICATION", "Convergence", "Progress", "check_rules"]


@dataclass(frozen=True)
class Progress:
    """How far a phase has come.

    Attributes:
        epochs: The number of epochs that are done.
        best: The best value of the validation metric, ``None`` before the first finite value.
        waited: The number of epochs since the best value.
    """

    epochs: int = 0
    best: float | None = None
    waited: int = 0


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """End a phase when the validation metric has converged (Network Alchemy, secs. 3.2.2 and 4.1).

    Args:
        patience: The number of epochs without improvement after which the phase ends; ``None`` for a fixed number of
            epochs.
        limit: The number of epochs after which the phase ends in any case; ``None`` for no limit.
        min_delta: The smallest change, in the metric's unit, that counts as an improvement, >= 0.
        mode: ``"min"`` for a loss, ``"max"`` for a score as Dice.

    Raises:
        AlchemyError: Neither patience nor limit is given, or a number is out of range.

    Example:
        >>> rule, progress = Convergence(patience=2), Progress()
        >>> for loss in (0.9, 0.7, 0.8, 0.7):
        ...     progress = rule.after(progress, loss)
        ...     print(rule.reached(progress), end=" ")
        False False False True
    """

    patience: int | None = None
    limit: int | None = None
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.patience is None and self.limit is None:
            raise AlchemyError("a phase needs a patience, a limit of epochs, or both, or it never ends")
        for name in ("patience", "limit"):
            value = getattr(self, name)
            # The remainder of an infinite number is NaN, which is unequal to 0, so it is refused too.
            if value is not None and (not isinstance(value, Real) or value % 1 != 0 or value < 1):
                raise AlchemyError(f"{name} is a whole number of epochs from 1, not {value!r}")
        if self.mode not in ("min", "max") or not 0 <= self.min_delta < math.inf:
            raise AlchemyError(f"mode is min or max and min_delta >= 0, not {self.mode!r} and {self.min_delta}")

    def after(self, progress: Progress, value: float | None) -> Progress:
        """Return the progress after one more epoch; a missing or non-finite value is no improvement.

        Raises:
            AlchemyError: The value is missing, and the phase ends on a plateau.
        """
        if value is None and self.patience is not None:
            raise AlchemyError("this phase ends on a plateau: give update() the validation metric of the epoch")
        later = replace(progress, epochs=progress.epochs + 1, waited=progress.waited + 1)
        if value is not None and self._improves(value, progress.best):
            return replace(later, best=float(value), waited=0)
        return later

    def reached(self, progress: Progress) -> bool:
        """Return whether the phase is over."""
        on_plateau = self.patience is not None and progress.waited >= self.patience
        return on_plateau or (self.limit is not None and progress.epochs >= self.limit)

    def _improves(self, value: float, best: float | None) -> bool:
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta


DEFAULT_IDENTIFICATION = Convergence(patience=5, limit=100)
"""When the identification of Network Alchemy ends by default."""


def check_rules(**rules: object) -> None:
    """Check the rules by which phases end.

    Args:
        rules: A ``Convergence`` or ``None`` for each phase.

    Raises:
        AlchemyError: A rule is something else.
    """
    for phase, rule in rules.items():
        if not (rule is None or isinstance(rule, Convergence)):
            raise AlchemyError(
                f"{phase} must be a layertune.Convergence, for example Convergence(limit=20), not {rule!r}"
            )

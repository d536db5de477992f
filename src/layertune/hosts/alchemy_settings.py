"""The settings of Network Alchemy: their defaults and checks, for every host."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Self

from layertune.alchemy.convergence import DEFAULT_IDENTIFICATION, Convergence, check_rules
from layertune.alchemy.redundancy import check_limits, default_threshold
from layertune.errors import AlchemyError
from layertune.hosts.gamma_penalty import PenaltyOptions, PenaltySettings, check_switches

__all__ = ["IDENTIFICATION", "AlchemyOptions", "AlchemySettings"]

IDENTIFICATION: Mapping[str, Convergence] = MappingProxyType(
    # nnU-Net trains for 1000 epochs and has no early stopping, so its identification is a fixed number of epochs.
    {"usual": DEFAULT_IDENTIFICATION, "long_training": Convergence(limit=50)}
)
"""When the identification ends by default, by the name of a preset."""


class AlchemyOptions(PenaltyOptions, total=False):
    """The arguments of a host's class that make up ``AlchemySettings``; ``None`` means not given.

    ``identification`` is not among them: there ``None`` is a value, so a host's class takes it by itself, with
    ``layertune.alchemy.convergence.DEFAULT_IDENTIFICATION`` as its default.
    """

    threshold: float | None
    quantile: float | None
    whole_layers: bool | None
    modification: bool | None
    maximisation: Convergence | None
    biases: bool | None
    head: Collection[str] | None
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class AlchemySettings(PenaltySettings):
    """Hold the settings of Network Alchemy, complete and checked; the first four are those of ``PenaltySettings``.

    Attributes:
        threshold: A kernel is redundant if its |gamma| is below this number, > 0. Default: 0.05, unless ``quantile`` is
            given.
        quantile: The share of all kernels that are redundant, between 0 and 1, in place of ``threshold``.
        whole_layers: Whether all kernels of a layer may start afresh, which is refused otherwise.
        identification: When the identification ends. ``None`` leaves it out: the gammas are judged as they are when the
            run starts. Default: after 5 epochs without a better metric, or after 100 epochs.
        modification: Whether redundant kernels start afresh.
        maximisation: When the maximisation ends, and the run with it. ``None`` (default): when the host stops.
        biases: Whether biases train in the identification too.
        head: Names of parameters that train in the identification too.
        seed: Seed of the new kernels.

    Raises:
        AlchemyError: A setting is out of range. The message names the setting and the value.

    Example:
        >>> settings = AlchemySettings.given(quantile=0.1, weight=None, identification=Convergence(limit=20))
        >>> settings.threshold, settings.quantile, settings.weight
        (None, 0.1, 0.0001)
    """

    threshold: float | None = None
    quantile: float | None = None
    whole_layers: bool = False
    identification: Convergence | None = DEFAULT_IDENTIFICATION
    modification: bool = True
    maximisation: Convergence | None = None
    biases: bool = False
    head: Collection[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rules(identification=self.identification, maximisation=self.maximisation)
        object.__setattr__(self, "threshold", default_threshold(self.threshold, self.quantile))
        check_limits(self.threshold, self.quantile)
        check_switches(self, "whole_layers", "modification", "biases")
        if isinstance(self.head, str) or not all(isinstance(name, str) for name in self.head):
            raise AlchemyError(f"head must be a list of names of parameters, not {self.head!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise AlchemyError(f"seed must be a whole number, not {self.seed!r}")

    @classmethod
    def given(cls, *, identification: Convergence | None = DEFAULT_IDENTIFICATION, **values: Any) -> Self:
        """Build the record from the values that a user gave.

        Args:
            identification: When the identification ends; here ``None`` is a value, and leaves the phase out.
            **values: Other settings by name. ``None`` means that the user did not give this setting.
        """
        return cls(identification=identification, **{name: v for name, v in values.items() if v is not None})

    @property
    def phases(self) -> dict[str, Any]:
        """The settings that ``layertune.Alchemy`` takes, by name; those of the penalty left out."""
        of_penalty = {field.name for field in fields(PenaltySettings)}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in of_penalty}

    def require_metric(self, given: bool, how: str) -> None:
        """Refuse a phase that waits for a plateau of a metric where the host has no metric.

        Args:
            given: Whether the user named a metric.
            how: What to write to name one, as in ``"AlchemyCallback(monitor=...)"``.

        Raises:
            AlchemyError: A phase has a patience, and there is no metric.
        """
        waits = any(rule is not None and rule.patience for rule in (self.identification, self.maximisation))
        if waits and not given:
            raise AlchemyError(
                f"a phase with a patience ends on a plateau of a metric: give {how}, or give the phases a number of "
                "epochs, as in identification=Convergence(limit=20)"
            )

"""The settings of MetaLR: their defaults and checks, for every host."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Self, TypedDict

from layertune.errors import OptimizerError
from layertune.metalr.correcting.rules import HYPER_LR, RULES

__all__ = ["FREE_HYPER_LR", "PRESETS", "RULE_NAMES", "STARTS", "MetaLROptions", "MetaLRSettings"]

RULE_NAMES = ("free", *RULES)
"""The rules by which rates are learned, the default first."""
STARTS = ("weights", "lr")
"""What the first step of the rule ``"free"`` may follow."""
FREE_HYPER_LR = 0.05
MIN_LR = 1e-6  # of the paper, section 3

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "usual": MappingProxyType({}),
        # The rule "free" was measured on trainings of some hundred steps only.
        "long_training": MappingProxyType({"rule": "proportional", "rule_of_0_1": "proportional"}),
    }
)
"""Defaults by name, where they differ from those of ``MetaLRSettings``. nnU-Net, which trains for 250,000 steps, uses
``"long_training"``."""


class MetaLROptions(TypedDict, total=False):
    """The arguments of a host's class that make up ``MetaLRSettings``; ``None`` means not given."""

    hyper_lr: float | None
    rule: str | None
    min_lr: float | None
    max_lr: float | None
    max_change: float | None
    every: int | None
    streaming: bool | None
    start: str | None


@dataclass(frozen=True, kw_only=True)
class MetaLRSettings:
    """Hold the settings of ``MetaLR``, complete and checked.

    This record is the only place of the defaults. A host's plug-in passes on what its user gave, with
    ``MetaLRSettings.given``, and hands the record to ``MetaLR(optimizer, settings=...)``.

    Attributes:
        hyper_lr: The step size eta of the learning rates, >= 0. 0 changes nothing, bit for bit. ``None`` is replaced by
            the default of the rule: 0.05 for ``"free"`` and ``"cosine"``, and 0.1 for ``"joint"`` and
            ``"proportional"``. The rule ``"additive"`` has no default, because its unit depends on the loss.
        rule: How rates are learned: ``"free"``, ``"joint"``, ``"cosine"``, ``"proportional"`` or ``"additive"``; see
            ``MetaLR``.
        start: What the first step follows, with the rule ``"free"``: ``"weights"`` makes it 3e-4 of the weights'
            length, whatever ``lr`` is, and ``"lr"`` respects the optimizer's ``lr``. Other rules always respect it.
        min_lr: The smallest learned rate, >= 0. ``None`` is replaced by 0 for the rule ``"free"``, and by the paper's
            1e-6 for the others.
        max_lr: The largest learned rate, above ``min_lr``. ``None`` sets no limit.
        max_change: The largest factor, up or down, of one adaptation, > 1.
        every: MetaLR learns at each ``every``-th optimizer step, a whole number >= 1.
        streaming: Whether the gradient of the next training batch serves as the meta gradient.
        rule_of_0_1: The rule by which a run of version 0.1 goes on, which did not save the name of its rule.

    Raises:
        OptimizerError: A setting is out of range. The message names the setting, its range and the value.

    Example:
        >>> MetaLRSettings(rule="cosine")  # doctest: +NORMALIZE_WHITESPACE
        MetaLRSettings(hyper_lr=0.05, rule='cosine', start='weights', min_lr=1e-06, max_lr=None, max_change=2.0,
                       every=1, streaming=False, rule_of_0_1='joint')
    """

    hyper_lr: float | None = None
    rule: str = "free"
    start: str = "weights"
    min_lr: float | None = None
    max_lr: float | None = None
    max_change: float = 2.0
    every: int = 1
    streaming: bool = False
    rule_of_0_1: str = "joint"

    def __post_init__(self) -> None:
        _check_types(self)
        if self.hyper_lr is None:
            object.__setattr__(self, "hyper_lr", _default_hyper_lr(self.rule))
        if self.min_lr is None:
            object.__setattr__(self, "min_lr", 0.0 if self.rule == "free" else MIN_LR)
        for holds, message in _conditions(self, self.eta):
            if not holds:
                raise OptimizerError(message())

    @property
    def lowest_lr(self) -> float:
        """``min_lr`` as a number: the given one, or the default of the rule."""
        assert self.min_lr is not None  # __post_init__ has replaced None by the default of the rule
        return self.min_lr

    @property
    def eta(self) -> float:
        """``hyper_lr`` as a number: the given one, or the default of the rule."""
        assert self.hyper_lr is not None  # __post_init__ has replaced None by the default of the rule
        return self.hyper_lr

    @classmethod
    def given(cls, *, preset: str = "usual", **values: Any) -> Self:
        """Build the record from the values that a user gave.

        Args:
            preset: A name of ``PRESETS``: the defaults to use where nothing was given.
            **values: Settings by name. ``None`` means that the user did not give this setting.

        Raises:
            OptimizerError: A setting or the preset is unknown, or a value is out of range.

        Example:
            >>> MetaLRSettings.given(preset="long_training", hyper_lr=0.3, every=None).rule
            'proportional'
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise OptimizerError(f"MetaLR has no setting {', '.join(unknown)}; it has {', '.join(known)}")
        if preset not in PRESETS:
            raise OptimizerError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
        return cls(**{**PRESETS[preset], **{name: value for name, value in values.items() if value is not None}})

    @classmethod
    def one_of(cls, settings: Self | None, **single: Any) -> Self:
        """Return the given record, or build one from single settings where there is none.

        Raises:
            OptimizerError: Both were given.
        """
        given = [name for name, value in single.items() if value is not None]
        if settings is None:
            return cls.given(**single)
        if given:
            raise OptimizerError(
                f"MetaLR takes settings= or single settings, not both; put {', '.join(given)} into settings="
            )
        return settings


def _default_hyper_lr(rule: str) -> float:
    if rule == "free":
        return FREE_HYPER_LR
    if rule not in HYPER_LR:
        raise OptimizerError(
            f'rule="{rule}" needs a hyper_lr that fits the scale of loss and gradients, for example hyper_lr=1e-3; the '
            f"rules {', '.join(HYPER_LR)} have a default"
        )
    return HYPER_LR[rule]


def _check_types(settings: MetaLRSettings) -> None:
    if settings.start not in STARTS:
        raise OptimizerError(f"start must be one of {', '.join(STARTS)}, not {settings.start!r}")
    for name in ("hyper_lr", "min_lr", "max_lr", "max_change", "every"):
        value = getattr(settings, name)
        if not isinstance(value, int | float) and not (name in ("hyper_lr", "min_lr", "max_lr") and value is None):
            raise OptimizerError(f"{name} must be a number, not {value!r}")
    if not isinstance(settings.streaming, bool):
        raise OptimizerError(f"streaming must be True or False, not {settings.streaming!r}")
    if settings.rule not in RULE_NAMES:
        raise OptimizerError(f"rule must be one of {', '.join(RULE_NAMES)}, not {settings.rule!r}")


def _conditions(own: MetaLRSettings, eta: float) -> list[tuple[bool, Callable[[], str]]]:
    """Pair each range that a setting must lie in with the message for a value outside."""
    lowest = own.lowest_lr
    within = own.max_lr is None or own.max_lr > lowest
    return [
        (0 <= eta < float("inf"), lambda: f"hyper_lr must be finite and >= 0, not {eta}"),
        (lowest >= 0, lambda: f"min_lr must be >= 0, not {lowest}"),
        (within, lambda: f"max_lr must be above min_lr = {lowest}, not {own.max_lr}"),
        (own.max_change > 1, lambda: f"max_change must be above 1, not {own.max_change}"),
        (own.every % 1 == 0 and own.every >= 1, lambda: f"every must be a whole number from 1, not {own.every}"),
    ]

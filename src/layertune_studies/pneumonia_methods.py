"""The pneumonia study's ways of fine-tuning, and which of a way's settings is reported."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from layertune import BiDirectional
from layertune_lightning import LayerFreezeCallback, MetaLRCallback
from layertune_studies.demo_methods import bidirectional_settings

__all__ = ["HYPER_LR", "METHODS", "RULE", "Chosen", "Method", "Setting", "best", "choose", "tuned_rate"]

# What the README names for a task of which nothing is known.
RULE, HYPER_LR = "cosine", 0.05


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training of one seed, apart from the network and the seed.

    Attributes:
        lr: rate of the optimizer.
        frozen: shallowest and deepest frozen depth, if any.
        meta: ``"exact"`` or ``"streaming"``, if rates are learned.
        scratch: whether it starts from random weights.
    """

    lr: float
    frozen: tuple[int, int] | None = None
    meta: str | None = None
    scratch: bool = False

    @property
    def name(self) -> str:
        """Fit for a file name."""
        frozen = "" if self.frozen is None else "-frozen{}to{}".format(*self.frozen)
        return f"{'scratch' if self.scratch else self.meta or 'all'}{frozen}-lr{self.lr:g}"

    @property
    def passes(self) -> int:
        """Forward and backward passes of a step."""
        return 2 if self.meta == "exact" else 1

    def callbacks(self) -> list[pl.Callback]:
        """What the Trainer is given."""
        if self.frozen is not None:
            return [LayerFreezeCallback(BiDirectional(*self.frozen))]
        if self.meta is not None:
            return [MetaLRCallback(hyper_lr=HYPER_LR, rule=RULE, streaming=self.meta == "streaming")]
        return []


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        title: as it is shown.
        settings: of the rates that are tried, the tuned rate and the network's depth.
    """

    title: str
    settings: Callable[[tuple[float, ...], float, int], list[Setting]]


@dataclass(frozen=True)
class Chosen:
    """What a method came to on one seed.

    Attributes:
        setting: the one that was best on the validation images.
        piece: its scores and time.
        passes: a step, over all settings that were tried.
    """

    setting: Setting
    piece: dict[str, Any]
    passes: int


METHODS = (
    Method("random weights, that rate", lambda _, tuned, __: [Setting(lr=tuned, scratch=True)]),
    Method("all layers, best rate", lambda lrs, *_: [Setting(lr=lr) for lr in lrs]),
    Method("all layers, lowest rate", lambda lrs, *_: [Setting(lr=min(lrs))]),
    Method(
        "bi-directional, best rate",
        lambda _, tuned, d: [Setting(lr=tuned, frozen=ends) for ends in bidirectional_settings(d)],
    ),
    Method("exact, from lowest rate", lambda lrs, *_: [Setting(lr=min(lrs), meta="exact")]),
    Method("exact, from best rate", lambda _, tuned, __: [Setting(lr=tuned, meta="exact")]),
    Method("streaming, from lowest rate", lambda lrs, *_: [Setting(lr=min(lrs), meta="streaming")]),
    Method("streaming, from best rate", lambda _, tuned, __: [Setting(lr=tuned, meta="streaming")]),
)


def choose(method: Method, lrs: tuple[float, ...], tuned: float, d: int, train: Callable[[Setting], Any]) -> Chosen:
    """Train with each setting of a method, and keep the one that is best on the validation images."""
    settings = method.settings(lrs, tuned, d)
    pieces = [train(setting) for setting in settings]
    first = best(pieces)
    return Chosen(settings[first], pieces[first], sum(setting.passes for setting in settings))


def tuned_rate(lrs: tuple[float, ...], train: Callable[[Setting], Any]) -> float:
    """The rate that is best for all layers."""
    return lrs[best([train(Setting(lr=lr)) for lr in lrs])]


def best(pieces: list[dict[str, Any]]) -> int:
    """The most accurate on the validation images; of equals the one of the lowest loss there.

    Example:
        >>> one, two = ({"validation": {"accuracy": 0.9, "loss": loss}} for loss in (0.3, 0.2))
        >>> best([one, two])
        1
    """
    scores = [piece["validation"] for piece in pieces]
    return max(range(len(scores)), key=lambda index: (scores[index]["accuracy"], -scores[index]["loss"]))

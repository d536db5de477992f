"""The ways of fine-tuning that the demo compares."""

from dataclasses import dataclass
from typing import Literal

from layertune import AllLayers, BiDirectional, LastLayer, LayerMap
from layertune.policies.policies import Policy

__all__ = ["HYPER_LR", "RULE", "Candidate", "Method", "bidirectional_settings", "methods"]

# Half decades on both sides of what fine-tunes this network, so that the best one is not at an end.
LRS = (3e-2, 1e-1, 3e-1, 1.0, 3.0)
RULE = "proportional"
START_LR = 1e-1
HYPER_LR = 10.0


@dataclass(frozen=True)
class Candidate:
    """One setting of a method.

    Attributes:
        name: fit for a file name; methods that share a setting share its training.
        lr: learning rate of the tuned layers at the start; ``None``: the one that was chosen for all layers.
        frozen: shallowest and deepest frozen depth, if any.
        only_head: whether the last layer alone is tuned.
    """

    name: str
    lr: float | None
    frozen: tuple[int, int] | None = None
    only_head: bool = False

    @property
    def label(self) -> str:
        """For tables."""
        return f"depths {self.frozen[0]} to {self.frozen[1]} frozen" if self.frozen else f"rate {self.lr:g}"

    @property
    def freezes(self) -> bool:
        """Whether any layer is frozen."""
        return self.only_head or self.frozen is not None

    @property
    def policy(self) -> Policy:
        """Which layers are tuned."""
        if self.only_head:
            return LastLayer()
        return BiDirectional(*self.frozen) if self.frozen else AllLayers()


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning.

    Attributes:
        key: fit for a file name.
        title: for tables.
        candidates: its settings, of which the validation subjects choose one.
        meta: how rates are learned, if they are: with a meta pass a step, or from the next training batch.
        rule: of MetaLR.
        hyper_lr: of MetaLR.
    """

    key: str
    title: str
    candidates: tuple[Candidate, ...]
    meta: Literal["exact", "streaming"] | None = None
    rule: str = RULE
    hyper_lr: float = HYPER_LR

    @property
    def passes(self) -> int:
        """Forward and backward passes of a step."""
        return 2 if self.meta == "exact" else 1


def methods(layers: LayerMap) -> list[Method]:
    """What is compared on a network of these layers: constant rates, frozen layers, learned rates."""
    flat = tuple(Candidate(f"all-{lr:g}", lr) for lr in LRS)
    head = tuple(Candidate(f"last-{lr:g}", lr, only_head=True) for lr in LRS)
    ends = tuple(Candidate(f"m{m}-n{n}", None, frozen=(m, n)) for m, n in bidirectional_settings(layers.d))
    return [
        Method("all", "All layers, best rate", flat),
        Method("start", "All layers, same start", (flat[LRS.index(START_LR)],)),
        Method("last", "Last layer", head),
        Method("bidirectional", "Bi-directional", ends),
        Method("metalr", "MetaLR, exact", (Candidate(f"exact-{START_LR:g}", START_LR),), meta="exact"),
        Method("streaming", "MetaLR, streaming", (Candidate(f"streaming-{START_LR:g}", START_LR),), meta="streaming"),
    ]


def bidirectional_settings(d: int) -> list[tuple[int, int]]:
    """Three of the d(d-1)/2 settings (m, n): frozen are the middle, more of it, and all but the two ends.

    Args:
        d: depth of the network, at least 4.

    Example:
        >>> bidirectional_settings(7)
        [(4, 4), (3, 5), (2, 6)]
    """
    middle, widest = (d + 1) // 2, (d - 3) // 2
    return [(middle - width, middle + width) for width in sorted({0, widest // 2, widest})]

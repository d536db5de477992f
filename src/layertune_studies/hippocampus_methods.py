"""The ways of fine-tuning that the hippocampus study compares, and how a method's setting is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layertune.layers.layer import Depth
from layertune_studies.demo_methods import START_LR, Candidate, Method
from layertune_studies.demo_train import Scores
from layertune_studies.demo_work import Piece, Workshop

__all__ = ["FLAT", "RATES", "STARTS", "Trial", "Way", "best", "learned_ways", "run_way", "static_ways"]

# Half decades on both sides of what fine-tunes this network.
RATES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
STARTS = (1e-2, START_LR, 1.0)
FLAT = Method("flat", "All layers, best of 6 rates", tuple(Candidate(f"flat-{lr:g}", lr) for lr in RATES))
# The middle, more of it, the shallow and the deep half: 6 of the 21 settings of a network of depth 7.
SETTINGS_I1 = ((2, 3), (2, 4), (3, 5), (4, 4), (4, 6), (2, 6))
# All settings of depth 4: under I2 this network has three levels and the head.
SETTINGS_I2 = ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3))


@dataclass(frozen=True)
class Way:
    """A method under one reading of the U.

    Attributes:
        method: with its settings.
        depth: how depths are read.
    """

    method: Method
    depth: Depth = "I1"


def static_ways() -> list[Way]:
    """Constant rates and frozen layers; the first chooses the rate for the others."""
    ways = [Way(FLAT)]
    settings: tuple[tuple[Depth, tuple[tuple[int, int], ...]], ...] = (("I1", SETTINGS_I1), ("I2", SETTINGS_I2))
    for depth, grid in settings:
        candidates = tuple(Candidate(f"{depth}-m{m}-n{n}", None, frozen=(m, n)) for m, n in grid)
        ways.append(Way(Method(f"bidirectional-{depth}", f"Bi-directional {depth}, best of 6", candidates), depth))
    return ways


def learned_ways(start: float) -> list[Way]:
    """Learned rates from one starting rate, by the rule of the demo, and from its starting rate by another rule too."""
    cosine: dict[str, Any] = {"rule": "cosine", "hyper_lr": 0.05}

    def way(key: str, title: str, **options: Any) -> Way:
        return Way(Method(key, title, (Candidate(f"{key}-{start:g}", start),), **options))

    ways = [
        way("exact", "MetaLR, exact", meta="exact"),
        way("streaming", "MetaLR, streaming", meta="streaming"),
    ]
    if start != START_LR:
        return ways
    return [
        *ways,
        way("exact-cosine", "MetaLR, exact, cosine rule", meta="exact", **cosine),
        way("streaming-cosine", "MetaLR, streaming, cosine rule", meta="streaming", **cosine),
    ]


@dataclass(frozen=True)
class Trial:
    """One setting on one seed.

    Attributes:
        setting: for tables.
        lr: rate at the start.
        piece: the training.
        scores: on the test cases.
    """

    setting: str
    lr: float
    piece: Piece
    scores: Scores


def run_way(workshop: Workshop, start: Piece, way: Way, seed: int, flat_lr: float) -> list[Trial]:
    """Train and test every setting of a method."""
    trials = []
    for candidate in way.method.candidates:
        lr = candidate.lr or flat_lr
        piece = workshop.tuned(start, way.method, candidate, lr=lr, seed=seed)
        outcome = workshop.tested(f"{candidate.name}-seed{seed}", piece)
        trials.append(Trial(candidate.label, lr, piece, outcome.scores))
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """What the validation cases choose."""
    return max(trials, key=lambda trial: trial.piece.validation)

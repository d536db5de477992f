"""What a training step costs in MONAI's engine with the handler, as ratios to the same engine without it."""

import statistics
import time
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss

from layertune_monai import MetaLRHandler
from layertune_studies.bench.networks import STEP_NETWORKS
from layertune_studies.bench.step import CYCLE, HYPER_LR

__all__ = ["MONAI_LIMITS", "bench_monai"]

WARM_UP = CYCLE  # first steps trace, make buffers and choose algorithms; with `every` the tenth is the first meta pass
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "streaming": {"streaming": True},
    "plain": None,
    "every10": {"every": CYCLE},
    "exact": {},
}
MONAI_LIMITS = {"streaming_ratio": 1.08, "every10_ratio": 1.15, "exact_ratio": 2.15}
"""Upper bounds on a quiet machine."""

Batch = dict[str, torch.Tensor]


def bench_monai(*, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time runs of ``SupervisedTrainer`` with ``MetaLRHandler`` beside runs without it, in one process and in turns.

    One repeat is a run of each contender on an equal network and equal batches, which are at hand; its first ten
    iterations are not counted, and the ten that follow are held against those of the plain run of the repeat.
    Processor time is measured, since other work on the machine stretches a run and hardly changes that.

    Args:
        repeats: at least 2.
        seed: of weights and batches.

    Returns:
        ``streaming_ratio``, ``every10_ratio`` and ``exact_ratio``, medians over the repeats; ``plain_ms``, the median
        plain iteration; ``repeats``; and ``spread``, the quartiles of each ratio.

    Example:
        ``layertune bench monai`` runs it.

        >>> MONAI_LIMITS["streaming_ratio"]
        1.08
    """
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name, settings in CONTENDERS.items():
            times[name].append(_seconds(settings, seed))
    ratios = {
        name: [own / plain for own, plain in zip(values, times["plain"], strict=True)]
        for name, values in times.items()
        if name != "plain"
    }
    return {
        **{f"{name}_ratio": statistics.median(values) for name, values in ratios.items()},
        "plain_ms": 1000 * statistics.median(times["plain"]),
        "repeats": repeats,
        "spread": {name: [round(q, 4) for q in statistics.quantiles(values)[::2]] for name, values in ratios.items()},
    }


class _Clock:
    """When each iteration began, and when the last one ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def attach(self, engine: Any) -> None:
        for event in (Events.ITERATION_STARTED, Events.COMPLETED):
            engine.add_event_handler(event, lambda _: self.times.append(time.process_time()))


def _seconds(settings: dict[str, Any] | None, seed: int) -> float:
    """An iteration of one run."""
    torch.manual_seed(seed)
    spec = STEP_NETWORKS["unet3d"]
    network, clock = spec.build(), _Clock()
    optimizer = spec.optimizer([{"params": list(network.parameters()), "lr": spec.lr}])
    batches = [_batch(spec.shape, spec.classes) for _ in range(WARM_UP + CYCLE)]
    learner = [] if settings is None else [MetaLRHandler(optimizer, batches[::-1], hyper_lr=HYPER_LR, **settings)]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        train_handlers=[clock, *learner],
    ).run()
    return (clock.times[-1] - clock.times[WARM_UP]) / CYCLE


def _batch(shape: tuple[int, ...], classes: int) -> Batch:
    return {"image": torch.randn(shape), "label": torch.randint(classes, shape).float()}

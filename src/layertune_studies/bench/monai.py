"""The cost of a training step in MONAI's engine with the handler, as ratios to the same engine without it."""

import time
from functools import partial
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss

from layertune_monai import MetaLRHandler
from layertune_studies.bench.networks import STEP_NETWORKS
from layertune_studies.bench.paired import CYCLE, HYPER_LR, MODES, ratios_to, summary, time_in_turns

__all__ = ["MONAI_LIMITS", "bench_monai"]

WARM_UP = CYCLE  # the first steps trace, allocate buffers and choose algorithms; see bench/lightning.py
MONAI_LIMITS = {"streaming_ratio": 1.08, "every10_ratio": 1.15, "exact_ratio": 2.15}
"""Upper bounds on a quiet machine."""

Batch = dict[str, torch.Tensor]


def bench_monai(*, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time runs of ``SupervisedTrainer`` with ``MetaLRHandler`` beside runs without it, in one process and in turns.

    A repeat is a run of each contender on an equal network and equal batches, which are in memory. The first ten
    iterations of a run do not count, the ten that follow are compared with those of the plain run of the repeat.
    Processor time is measured, since other work on the machine stretches a run and hardly changes its processor time.

    Args:
        repeats: Number of repeats, at least 1.
        seed: Seed of the weights and batches.

    Returns:
        ``streaming_ratio``, ``every10_ratio`` and ``exact_ratio``, medians over the repeats; ``plain_ms``, the median
        plain iteration; ``repeats``; and ``spread``, the quartiles of each ratio.

    Example:
        ``layertune bench monai`` runs it.

        >>> MONAI_LIMITS["streaming_ratio"]
        1.08
    """
    times = time_in_turns({name: partial(_seconds, settings, seed) for name, settings in MODES.items()}, repeats)
    return summary(ratios_to(times), times["plain"], repeats=repeats)


class _Clock:
    """Records when each iteration began, and when the last one ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def attach(self, engine: Any) -> None:
        for event in (Events.ITERATION_STARTED, Events.COMPLETED):
            engine.add_event_handler(event, lambda _: self.times.append(time.process_time()))


def _seconds(settings: dict[str, Any] | None, seed: int) -> float:
    """Return the seconds of an iteration of one run."""
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

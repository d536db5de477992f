"""What Network Alchemy costs: a norm-only step and a step with the penalty, as ratios to the plain step."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from layertune.alchemy.norms import norm_only
from layertune.alchemy.penalty import GammaPenalty
from layertune_studies.bench.networks import STEP_NETWORKS, Batch, StepNetwork
from layertune_studies.bench.step import plain_step

__all__ = ["LIMITS", "bench_alchemy"]

LAPS = 10
LIMITS = {"norm_only_ratio": 0.75, "penalty_ratio": 1.02}
"""Upper bounds on a quiet machine."""

Step = Callable[[], object]


def bench_alchemy(network: str, *, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time a norm-only step and a step with the penalty beside the plain step, in one process and in turns.

    Every contender has a model, an optimizer and a batch of its own, equal at the start; in a lap each takes one step,
    and is held against the plain step of that lap. The penalty is a small part of a step, so beside the ratio of whole
    steps, which wavers by more than it, its own forward and backward are timed and held against the plain step.

    Args:
        network: ``"resnet18"``, ``"resnet18_adamw"`` or ``"unet3d"``.
        repeats: of ten laps each, at least 1.
        seed: of weights and batches.

    Returns:
        ``norm_only_ratio``, ``penalty_ratio`` (1 + the penalty's own time over the plain step's), and
        ``penalty_step_ratio`` (of whole steps), medians; ``plain_ms`` and ``penalty_ms``; ``gammas``, how many the
        network has; ``repeats``; and ``spread``, the quartiles of the ratios.

    Raises:
        KeyError: an unknown network.

    Example:
        ``layertune bench alchemy`` runs it and shows the ratios beside their bounds.

        >>> LIMITS
        {'norm_only_ratio': 0.75, 'penalty_ratio': 1.02}
    """
    contenders, gammas = _contenders(STEP_NETWORKS[network], seed)
    for step in contenders.values():  # first steps make buffers and choose algorithms
        for _ in range(2):
            step()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(LAPS * repeats):
        for name, step in contenders.items():
            times[name].append(_seconds(step))
    plain = times["plain"]
    ratios = {
        "norm_only": [a / b for a, b in zip(times["norm_only"], plain, strict=True)],
        "penalty": [1 + a / b for a, b in zip(times["penalty"], plain, strict=True)],
        "penalty_step": [a / b for a, b in zip(times["with_penalty"], plain, strict=True)],
    }
    return {
        **{f"{name}_ratio": statistics.median(values) for name, values in ratios.items()},
        "plain_ms": 1000 * statistics.median(plain),
        "penalty_ms": 1000 * statistics.median(times["penalty"]),
        "gammas": gammas,
        "repeats": repeats,
        "spread": {name: _quartiles(values) for name, values in ratios.items()},
    }


def _contenders(spec: StepNetwork, seed: int) -> tuple[dict[str, Step], int]:
    """The plain step in the middle, close to those whose ratio is near 1."""
    torch.manual_seed(seed)
    batch = spec.batch()

    def fresh() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(seed)
        model = spec.build()
        return model, spec.optimizer([{"params": list(model.parameters()), "lr": spec.lr}])

    frozen, frozen_optimizer = fresh()
    norm_only(frozen)
    model, optimizer = fresh()
    penalty = GammaPenalty(model)
    steps = {
        "norm_only": plain_step(spec, frozen, frozen_optimizer, batch),
        "with_penalty": _penalised_step(spec, model, optimizer, batch, penalty),
        "plain": plain_step(spec, *fresh(), batch),
        "penalty": lambda: penalty().backward(),
    }
    return steps, sum(parameter.numel() for parameter in penalty.gammas)


def _penalised_step(
    spec: StepNetwork, model: nn.Module, optimizer: Optimizer, batch: Batch, penalty: GammaPenalty
) -> Step:
    images, target = batch

    def step() -> None:
        optimizer.zero_grad()
        (spec.loss(model(images), target) + penalty()).backward()
        optimizer.step()

    return step


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _quartiles(values: list[float]) -> list[float]:
    return [round(float(torch.quantile(torch.tensor(values), q)), 4) for q in (0.25, 0.75)]

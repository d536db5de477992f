"""The cost of Network Alchemy: a norm-only step and a step with the penalty, as ratios to the plain step."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from layertune.alchemy.norms import norm_only
from layertune.alchemy.penalty import GammaPenalty
from layertune_studies.bench.networks import STEP_NETWORKS, Batch, StepNetwork
from layertune_studies.bench.paired import CYCLE, ratios_to, seconds_of, summary, time_in_turns
from layertune_studies.bench.step import plain_step

__all__ = ["LIMITS", "bench_alchemy"]

WARM_UP = 2  # the first steps allocate buffers and choose algorithms
LIMITS = {"norm_only_ratio": 0.75, "penalty_ratio": 1.02}
"""Upper bounds on a quiet machine."""

Step = Callable[[], object]


def bench_alchemy(network: str, *, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time a norm-only step and a step with the penalty beside the plain step, in one process and in turns.

    Each contender has a model, an optimizer and a batch of its own, equal at the start. The penalty is a small part of
    a step, and the ratio of whole steps varies by more than that. So the penalty's own forward and backward are timed
    too and compared with the plain step.

    Args:
        network: ``"resnet18"``, ``"resnet18_adamw"`` or ``"unet3d"``.
        repeats: Number of repeats with ten laps each, at least 1.
        seed: Seed of the weights and batches.

    Returns:
        ``norm_only_ratio``, ``penalty_ratio`` (1 + the penalty's own time over the plain step's) and
        ``penalty_step_ratio`` (of whole steps), medians; ``plain_ms`` and ``penalty_ms``; ``gammas``, the number of
        gammas of the network; ``repeats``; and ``spread``, the quartiles of the ratios.

    Raises:
        KeyError: The network is unknown.

    Example:
        ``layertune bench alchemy`` runs it and shows the ratios beside their bounds.

        >>> LIMITS
        {'norm_only_ratio': 0.75, 'penalty_ratio': 1.02}
    """
    contenders, gammas = _contenders(STEP_NETWORKS[network], seed)
    turns = {name: partial(seconds_of, step) for name, step in contenders.items()}
    time_in_turns(turns, WARM_UP)
    times = time_in_turns(turns, CYCLE * repeats)
    parts = ratios_to(times)
    ratios = {
        "norm_only": parts["norm_only"],
        "penalty": [1 + ratio for ratio in parts["penalty"]],
        "penalty_step": parts["with_penalty"],
    }
    return {
        **summary(ratios, times["plain"], repeats=repeats),
        "penalty_ms": 1000 * statistics.median(times["penalty"]),
        "gammas": gammas,
    }


def _contenders(spec: StepNetwork, seed: int) -> tuple[dict[str, Step], int]:
    """Return the steps by name, and the number of gammas; the plain step is in the middle, see ``MODES``."""
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

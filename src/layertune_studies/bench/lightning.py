"""The cost of Lightning's callback: fits with it, as ratios to fits of the same Trainer without it."""

import time
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from layertune import LayerMap, map_layers
from layertune_lightning import MetaLRCallback
from layertune_studies.bench.networks import STEP_NETWORKS, StepNetwork
from layertune_studies.bench.paired import CYCLE, HYPER_LR, MODES, ratios_to, summary, time_in_turns
from layertune_studies.training.lightning import quiet, quiet_trainer

__all__ = ["LIGHTNING_LIMITS", "bench_lightning"]

# The first steps allocate buffers and choose algorithms; with `every` the first meta pass is in the tenth.
WARM_UP = CYCLE
SAMPLES = 2  # batches in the data
LIGHTNING_LIMITS = {"streaming_ratio": 1.08}
"""Upper bound on a quiet machine."""


def bench_lightning(network: str = "resnet18", *, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time fits with ``MetaLRCallback`` beside fits without it, in one process and in turns.

    A repeat is a fit of each contender on an equal module and equal data. The first ten steps of a fit do not count,
    the ten that follow are compared with those of the plain fit of the repeat. They hold everything that the Trainer
    does from batch to batch: loading the training batch and the meta batch, transfers, hooks, progress. Processor time
    is measured, since other work on the machine stretches a fit and hardly changes its processor time.

    Args:
        network: ``"resnet18"``, ``"resnet18_adamw"`` or ``"unet3d"``, as in the benchmark of a step.
        repeats: Number of repeats, at least 1.
        seed: Seed of the weights and data.

    Returns:
        ``streaming_ratio``, ``every10_ratio`` and ``exact_ratio``, medians over the repeats; ``plain_ms``, the median
        plain step; ``repeats``; and ``spread``, the quartiles of each ratio.

    Raises:
        KeyError: The network is unknown.

    Example:
        ``layertune bench lightning`` runs it.

        >>> LIGHTNING_LIMITS["streaming_ratio"]
        1.08
    """
    spec = STEP_NETWORKS[network]
    layers = map_layers(spec.build(), torch.empty(spec.shape))
    turns = {name: partial(_seconds, spec, layers, settings, seed) for name, settings in MODES.items()}
    with quiet():
        times = time_in_turns(turns, repeats)
    return summary(ratios_to(times), times["plain"], repeats=repeats)


class _Module(pl.LightningModule):
    def __init__(self, spec: StepNetwork) -> None:
        super().__init__()
        self.spec = spec
        self.network = spec.build()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        return self.spec.loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return self.spec.optimizer([{"params": list(self.parameters()), "lr": self.spec.lr}])


class _Clock(pl.Callback):
    """Records when each step began, and when the last one ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(time.process_time())

    def on_train_end(self, *_: Any) -> None:
        self.times.append(time.process_time())


def _seconds(spec: StepNetwork, layers: LayerMap, settings: dict[str, Any] | None, seed: int) -> float:
    """Return the seconds of a step of one fit."""
    torch.manual_seed(seed)
    module, clock = _Module(spec), _Clock()
    size, steps = spec.shape[0], WARM_UP + CYCLE
    data = TensorDataset(
        torch.randn(SAMPLES * size, *spec.shape[1:]),
        torch.randint(spec.classes, (SAMPLES * size, *spec.target_shape[1:])),
    )
    loader = DataLoader(data, size, sampler=RandomSampler(data, replacement=True, num_samples=size * steps))
    learner = [] if settings is None else [MetaLRCallback(hyper_lr=HYPER_LR, layers=layers, **settings)]
    quiet_trainer(max_epochs=1, callbacks=[clock, *learner]).fit(module, loader)
    return (clock.times[-1] - clock.times[WARM_UP]) / CYCLE

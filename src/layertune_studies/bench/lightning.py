"""What Lightning's callback costs: fits with it, as ratios to fits of the same Trainer without it."""

import statistics
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from layertune import LayerMap, map_layers
from layertune_lightning import MetaLRCallback
from layertune_studies.bench.networks import STEP_NETWORKS, StepNetwork
from layertune_studies.bench.step import CYCLE, HYPER_LR
from layertune_studies.training.lightning import quiet, quiet_trainer

__all__ = ["LIGHTNING_LIMITS", "bench_lightning"]

WARM_UP = CYCLE  # first steps make buffers and choose algorithms; the first meta pass with `every` is the tenth step's
SAMPLES = 2  # batches in the data
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "streaming": {"streaming": True},
    "plain": None,
    "every10": {"every": CYCLE},
    "exact": {},
}
LIGHTNING_LIMITS = {"streaming_ratio": 1.08}
"""Upper bound on a quiet machine."""


def bench_lightning(network: str = "resnet18", *, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time fits with ``MetaLRCallback`` beside fits without it, in one process and in turns.

    One repeat is a fit of each contender on an equal module and equal data; its first ten steps are not counted, and
    the ten that follow are held against those of the plain fit of the repeat. Everything that the Trainer does from
    batch to batch is in it: loading the training batch and the meta batch, transfers, hooks, progress. Processor time
    is measured, since other work on the machine stretches a fit and hardly changes that.

    Args:
        network: of the benchmark of a step: ``"resnet18"``, ``"resnet18_adamw"`` or ``"unet3d"``.
        repeats: at least 2.
        seed: of weights and data.

    Returns:
        ``streaming_ratio``, ``every10_ratio`` and ``exact_ratio``, medians over the repeats; ``plain_ms``, the median
        plain step; ``repeats``; and ``spread``, the quartiles of each ratio.

    Raises:
        KeyError: an unknown network.

    Example:
        ``layertune bench lightning`` runs it.

        >>> LIGHTNING_LIMITS["streaming_ratio"]
        1.08
    """
    spec = STEP_NETWORKS[network]
    layers = map_layers(spec.build(), torch.empty(spec.shape))
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with quiet():
        for _ in range(repeats):
            for name, settings in CONTENDERS.items():
                times[name].append(_seconds(spec, layers, settings, seed))
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
    """When each step began, and when the last one ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(time.process_time())

    def on_train_end(self, *_: Any) -> None:
        self.times.append(time.process_time())


def _seconds(spec: StepNetwork, layers: LayerMap, settings: dict[str, Any] | None, seed: int) -> float:
    """A step of one fit."""
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

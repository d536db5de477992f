"""What a training step costs with MetaLR: time and memory, as ratios to the plain step of the same optimizer."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from layertune.layers.layer_map import map_layers
from layertune.metalr.meta_pass import meta_pass
from layertune.metalr.metalr import MetaLR
from layertune.policies.param_groups import param_groups
from layertune_studies.bench.memory import PeakBytes
from layertune_studies.bench.networks import STEP_NETWORKS, Batch, StepNetwork
from layertune_studies.bench.second_order import SecondOrderMetaLR

__all__ = ["LIMITS", "bench_step", "extra_memory", "plain_step"]

CYCLE = 10
SLOW = ("second_order", "published")
SLOW_LAPS = 2  # of ten: these cost several plain steps each
HYPER_LR = 1e-6  # the networks learn noise here: rates that stay near their start keep every step alike
LIMITS = {"exact_ratio": 2.1, "every10_ratio": 1.15, "streaming_ratio": 1.06, "extra_memory_ratio": 1.1}
"""Upper bounds on a quiet machine; exact_ratio / second_order_ratio is to be at most 0.55."""

Step = Callable[[], object]


def bench_step(network: str, *, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time MetaLR's modes beside the plain step, in one process.

    Every contender has a model, an optimizer and batches of its own, equal at the start. One repeat is ten laps; in a
    lap each contender takes one step, so that a disturbance of the machine falls on all. A step is held against the
    plain step of its lap, and the median of these ratios is reported; ``every10_ratio`` compares sums over the ten
    laps of a repeat, so that its one meta pass is always in it. ``zero_grad``, forward, backward and ``step`` are
    timed, with the meta batch at hand, as the training batch is.

    Args:
        network: ``"resnet18"``, ``"resnet18_adamw"`` or ``"unet3d"``.
        repeats: of ten laps each, at least 1.
        seed: of weights and batches.

    Returns:
        ``exact_ratio``, ``every10_ratio``, ``streaming_ratio``, ``second_order_ratio`` (``SecondOrderMetaLR``, by
        ``backward()`` on the meta loss) and ``published_ratio`` (the same to the rates alone, as the authors' public
        code does; both ``None`` for another optimizer than SGD), ``extra_memory_ratio``; ``plain_ms``, the median
        plain step; ``repeats``; and ``spread``, the quartiles of each ratio of times.

    Raises:
        KeyError: an unknown network.

    Example:
        ``layertune bench step`` runs it and shows the ratios beside their bounds.

        >>> LIMITS["exact_ratio"], sorted(STEP_NETWORKS)
        (2.1, ['resnet18', 'resnet18_adamw', 'unet3d'])
    """
    spec = STEP_NETWORKS[network]
    contenders = _contenders(spec, seed)
    for step in contenders.values():  # first steps make buffers and choose algorithms
        for _ in range(2):
            step()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for lap in range(CYCLE * repeats):
        for name, step in contenders.items():
            if name not in SLOW or lap % CYCLE < SLOW_LAPS:
                times[name].append(_seconds(step))
    ratios = {name: _paired(times, name) for name in contenders if name != "plain"}
    return {
        **{f"{name}_ratio": statistics.median(values) for name, values in ratios.items()},
        **({} if "second_order" in ratios else {f"{name}_ratio": None for name in SLOW}),
        "extra_memory_ratio": extra_memory(spec, seed=seed),
        "plain_ms": 1000 * statistics.median(times["plain"]),
        "repeats": repeats,
        "spread": {name: _quartiles(values) for name, values in ratios.items()},
    }


def extra_memory(spec: StepNetwork, *, seed: int = 0) -> float:
    """Bytes that exact MetaLR adds to the peak of a plain training iteration, over the bytes of the parameters.

    All tensors are followed from the moment they are made, in a plain run and in a run with MetaLR: weights,
    activations, gradients, optimizer state, displacement. The peak of the third iteration counts, when all state is
    there; with MetaLR it is reached in the meta pass, between ``step`` and ``adapt``.
    """
    plain, _ = _peak(spec, seed, meta=False)
    exact, parameters = _peak(spec, seed, meta=True)
    return (exact - plain) / parameters


def _peak(spec: StepNetwork, seed: int, *, meta: bool) -> tuple[int, int]:
    torch.manual_seed(seed)
    layers = map_layers(spec.build(), torch.empty(spec.shape))
    with PeakBytes() as counted:
        model, batch = spec.build(), spec.batch()
        optimizer = spec.optimizer(param_groups(model, layers, lr=spec.lr))
        step = exact_step(spec, model, optimizer, batch, batch) if meta else plain_step(spec, model, optimizer, batch)
        step()
        step()
        counted.restart()
        step()
    return counted.peak, sum(parameter.nbytes for parameter in model.parameters())


def plain_step(spec: StepNetwork, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Step:
    """One iteration of an ordinary training loop."""
    images, target = batch

    def step() -> None:
        optimizer.zero_grad()
        spec.loss(model(images), target).backward()
        optimizer.step()

    return step


def exact_step(
    spec: StepNetwork,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    meta_batch: Batch,
    *,
    every: int = 1,
) -> Step:
    """The ordinary loop with MetaLR's meta pass at each ``every``-th step."""
    metalr = MetaLR(optimizer, hyper_lr=HYPER_LR, every=every)
    train = plain_step(spec, model, optimizer, batch)
    images, target = meta_batch

    def step() -> None:
        train()
        if metalr.due:
            optimizer.zero_grad()
            with meta_pass(model):
                spec.loss(model(images), target).backward()
            metalr.adapt()

    return step


def _contenders(spec: StepNetwork, seed: int) -> dict[str, Step]:
    """The plain step in the middle, close to those whose ratio is near 1."""
    torch.manual_seed(seed)
    batch, meta_batch = spec.batch(), spec.batch()

    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = spec.build()
        layers = map_layers(model, torch.empty(spec.shape))
        return model, spec.optimizer(param_groups(model, layers, lr=spec.lr))

    model, optimizer = fresh()
    MetaLR(optimizer, hyper_lr=HYPER_LR, streaming=True)
    steps = {"streaming": plain_step(spec, model, optimizer, batch)}
    steps["plain"] = plain_step(spec, *fresh(), batch)
    steps["every10"] = exact_step(spec, *fresh(), batch, meta_batch, every=CYCLE)
    steps["exact"] = exact_step(spec, *fresh(), batch, meta_batch)
    for name in SLOW:
        model, optimizer = fresh()
        if type(optimizer) is torch.optim.SGD:
            learner = SecondOrderMetaLR(
                spec.build, model, optimizer, loss=spec.loss, hyper_lr=HYPER_LR, rates_only=name == "published"
            )
            steps[name] = partial(learner.step, batch, meta_batch)
    return steps


def _paired(times: dict[str, list[float]], name: str) -> list[float]:
    plain, own = times["plain"], times[name]
    if name == "every10":
        starts = range(0, len(plain), CYCLE)
        return [sum(own[start : start + CYCLE]) / sum(plain[start : start + CYCLE]) for start in starts]
    if name in SLOW:
        plain = [seconds for lap, seconds in enumerate(plain) if lap % CYCLE < SLOW_LAPS]
    return [a / b for a, b in zip(own, plain, strict=True)]


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _quartiles(values: Sequence[float]) -> list[float]:
    return [round(float(torch.quantile(torch.tensor(values), q)), 4) for q in (0.25, 0.75)]

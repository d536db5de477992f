"""The cost of a training step with MetaLR: time and memory, as ratios to the plain step of the same optimizer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from layertune.layers.layer_map import map_layers
from layertune.metalr.meta_pass import meta_pass
from layertune.metalr.metalr import MetaLR
from layertune.policies.param_groups import param_groups
from layertune_studies.bench.memory import PeakBytes
from layertune_studies.bench.networks import STEP_NETWORKS, Batch, StepNetwork
from layertune_studies.bench.paired import CYCLE, HYPER_LR, Times, ratios_to, seconds_of, summary, time_in_turns
from layertune_studies.bench.second_order import SecondOrderMetaLR

__all__ = ["LIMITS", "bench_step", "extra_memory", "plain_step"]

WARM_UP = 2  # the first steps allocate buffers and choose algorithms
SLOW = ("second_order", "published")  # these cost several plain steps each
SLOW_LAPS = 2  # of the ten laps of a repeat, in which these take part
LIMITS = {"exact_ratio": 2.1, "every10_ratio": 1.15, "streaming_ratio": 1.06, "extra_memory_ratio": 1.1}
"""Upper bounds on a quiet machine; exact_ratio / second_order_ratio is to be at most 0.55."""

Step = Callable[[], object]


def bench_step(network: str, *, repeats: int = 4, seed: int = 0) -> dict[str, Any]:
    """Time MetaLR's modes beside the plain step, in one process.

    Each contender has a model, an optimizer and batches of its own, equal at the start. A repeat has ten laps, see
    ``bench/paired.py``. ``every10_ratio`` compares sums over the ten laps of a repeat, so that its one meta pass is
    always included. ``zero_grad``, forward, backward and ``step`` are timed, with both batches in memory.

    Args:
        network: ``"resnet18"``, ``"resnet18_adamw"`` or ``"unet3d"``.
        repeats: Number of repeats with ten laps each, at least 1.
        seed: Seed of the weights and batches.

    Returns:
        ``exact_ratio``, ``every10_ratio``, ``streaming_ratio``, ``second_order_ratio`` (``SecondOrderMetaLR``, by
        ``backward()`` on the meta loss) and ``published_ratio`` (the same to the rates alone, as the authors' public
        code does; both ``None`` for another optimizer than SGD), ``extra_memory_ratio``; ``plain_ms``, the median
        plain step; ``repeats``; and ``spread``, the quartiles of each ratio of times.

    Raises:
        KeyError: The network is unknown.

    Example:
        ``layertune bench step`` runs it and shows the ratios beside their bounds.

        >>> LIMITS["exact_ratio"], sorted(STEP_NETWORKS)
        (2.1, ['resnet18', 'resnet18_adamw', 'unet3d'])
    """
    spec = STEP_NETWORKS[network]
    contenders = _contenders(spec, seed)
    turns = {name: partial(seconds_of, step) for name, step in contenders.items()}
    time_in_turns(turns, WARM_UP)
    times = time_in_turns(turns, CYCLE * repeats, takes_part=_takes_part)
    ratios = {name: _paired(times, name) for name in contenders if name != "plain"}
    return {
        **summary(ratios, times["plain"], repeats=repeats),
        **({} if "second_order" in ratios else {f"{name}_ratio": None for name in SLOW}),
        "extra_memory_ratio": extra_memory(spec, seed=seed),
    }


def _takes_part(name: str, lap: int) -> bool:
    return name not in SLOW or lap % CYCLE < SLOW_LAPS


def extra_memory(spec: StepNetwork, *, seed: int = 0) -> float:
    """Return the bytes that exact MetaLR adds to the peak of a plain iteration, over the bytes of the parameters.

    All tensors are counted from the moment they are made, in a plain run and in a run with MetaLR: weights,
    activations, gradients, optimizer state, displacement. The peak of the third iteration counts, when all state
    exists; with MetaLR it is reached in the meta pass, between ``step`` and ``adapt``.
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
    """Return a function that takes one iteration of an ordinary training loop."""
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
    """Return a function that takes one iteration of the loop, with MetaLR's meta pass at each ``every``-th step."""
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
    """Return the steps by name; the plain step is in the middle, see ``MODES``."""
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


def _paired(times: Times, name: str) -> list[float]:
    """Return a contender's ratios to the plain step, of ``every10`` those of whole repeats."""
    own, plain = times[name], times["plain"]
    if name == "every10":
        starts = range(0, len(plain), CYCLE)
        own, plain = ([sum(part[start : start + CYCLE]) for start in starts] for part in (own, plain))
    plain = [seconds for lap, seconds in enumerate(plain) if _takes_part(name, lap)]
    return ratios_to({"plain": plain, name: own})[name]

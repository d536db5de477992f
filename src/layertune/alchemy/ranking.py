"""Which of many checkpoints suits a task best: a norm-only training of each, in place of fine-tuning them all."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layertune.alchemy.norms import norm_only
from layertune.errors import AlchemyError, WeightsError
from layertune.layers.names import unwrap
from layertune.restoring import kept_random_state
from layertune.weights.loading import Loaded, load_weights, read_weights

__all__ = ["Candidate", "Ranking", "rank_checkpoints"]

Train = Callable[[nn.Module, int], object]
Evaluate = Callable[[nn.Module], float]
Checkpoints = Mapping[str, str | Path | Mapping[str, Tensor]] | Sequence[str | Path]


@dataclass(frozen=True)
class Candidate:
    """One checkpoint.

    Attributes:
        name: as it was given, or the file's name.
        metric: the validation metric after its norm-only training.
        spent: its budget, over all rounds.
        rounds: how many it took part in; 1 but for successive halving.
        loaded: what of it went into the network.
    """

    name: str
    metric: float
    spent: int
    rounds: int
    loaded: Loaded


@dataclass(frozen=True)
class Ranking:
    """Checkpoints, the best first.

    Attributes:
        candidates: all of them.
        spent: budget of all norm-only trainings together.
        seconds: that they took, measuring the metric included.
        full_budget: what fine-tuning all of them would take, if it was said.
        full_seconds: the same in seconds, from one unit of full training that was timed, without measuring a metric.
    """

    candidates: tuple[Candidate, ...]
    spent: int
    seconds: float
    full_budget: int | None = None
    full_seconds: float | None = None

    @property
    def names(self) -> list[str]:
        """The checkpoints' names, the best first."""
        return [candidate.name for candidate in self.candidates]


def rank_checkpoints(
    checkpoints: Checkpoints,
    model: nn.Module,
    train: Train,
    evaluate: Evaluate,
    *,
    budget: int,
    halving: int | None = None,
    keep: int = 1,
    higher_is_better: bool = True,
    full_budget: int | None = None,
    biases: bool = False,
    head: Collection[str] = (),
    seed: int = 0,
) -> Ranking:
    """Rank checkpoints by the metric of a norm-only training of each (Network Alchemy, sec. 4.4).

    Every checkpoint starts from the same network, with the same weights where the checkpoint has none (a new head),
    and from the same random numbers. At the end the network is as it was, without gradients.

    With ``halving=2`` only the better half of the checkpoints trains on, twice as long, until ``keep`` are left; those
    that went further rank higher. Learned gammas are kept from round to round, an optimizer that ``train`` makes is
    not.

    Args:
        checkpoints: paths, or a mapping from names to paths or state dicts.
        model: the network to train; checkpoints of another head are taken as far as they fit.
        train: called with the network and a number of epochs, or of steps, it trains what requires a gradient.
        evaluate: the validation metric of the network.
        budget: for each checkpoint (in the first round), in the unit of ``train``.
        halving: divides the field after each round, and multiplies the budget.
        keep: checkpoints that are not told apart by halving any more.
        higher_is_better: ``False`` for a loss.
        full_budget: what fine-tuning one checkpoint takes; if given, one unit of it is timed.
        biases: train biases too.
        head: names of parameters that train too, as ``map_layers(...).head.parameters`` for a head that is new.
        seed: of all random numbers inside.

    Returns:
        The checkpoints, the best first, and what the ranking cost. A metric that is not finite ranks last.

    Raises:
        AlchemyError: no checkpoint, a number out of range, or a checkpoint of another network.
        WeightsError: a file that is no checkpoint, or nothing of it fits.
        ModelError: the network has no norm with a gamma.

    Example:
        >>> make = lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        >>> def train(net, steps):
        ...     optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01)
        ...     for _ in range(steps):
        ...         optimizer.zero_grad()
        ...         net(torch.randn(8, 2)).square().mean().backward()
        ...         optimizer.step()
        >>> states = {"good": make().state_dict(), "bad": make().state_dict()}
        >>> states["bad"]["2.bias"] += 5
        >>> loss = lambda net: net(torch.randn(64, 2)).square().mean().item()
        >>> rank_checkpoints(states, make(), train, loss, budget=5, higher_is_better=False).names
        ['good', 'bad']
    """
    named = _named(checkpoints)
    _check(budget=budget, halving=halving, keep=keep, full_budget=full_budget)
    runner = _Runner(model, named, train, evaluate, {"biases": biases, "head": head}, seed)
    sign = 1 if higher_is_better else -1
    alive, started = list(named), time.perf_counter()
    try:
        while True:
            for name in alive:
                runner.run(name, budget)
            alive.sort(key=lambda name: _key(sign, runner.metrics[name]), reverse=True)
            if halving is None or len(alive) <= keep:
                break
            alive, budget = alive[: max(keep, math.ceil(len(alive) / halving))], budget * halving
            if len(alive) <= keep:
                break
        seconds = time.perf_counter() - started
        full = None if full_budget is None else runner.seconds_of_one_full_unit() * full_budget * len(named)
    finally:
        runner.restore()
    order = sorted(named, key=lambda name: (runner.rounds[name], _key(sign, runner.metrics[name])), reverse=True)
    candidates = [runner.candidate(name) for name in order]
    return Ranking(
        tuple(candidates),
        sum(candidate.spent for candidate in candidates),
        seconds,
        None if full_budget is None else full_budget * len(named),
        full,
    )


class _Runner:
    """Trains and measures one checkpoint at a time in one network."""

    def __init__(
        self, model: nn.Module, named: Mapping[str, Any], train: Train, evaluate: Evaluate, also: Any, seed: int
    ) -> None:
        self.metrics: dict[str, float] = {}
        self.rounds = dict.fromkeys(named, 0)
        self._spent = dict.fromkeys(named, 0)
        self._loaded: dict[str, Loaded] = {}
        self._learned: dict[str, dict[str, Tensor]] = {}
        self._model, self._named, self._also, self._seed = model, named, also, seed
        self._train, self._evaluate = train, evaluate
        self._initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self._training = [(module, module.training) for module in model.modules()]
        self._devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})

    def run(self, name: str, budget: int) -> None:
        self._load(name)
        with kept_random_state(self._devices), norm_only(self._model, **self._also):
            torch.manual_seed(self._seed + self.rounds[name])
            np.random.seed(self._seed + self.rounds[name])  # noqa: NPY002 - what loaders and augmentations draw from
            self._train(self._model, budget)
            self.metrics[name] = float(self._evaluate(self._model))
            trained = {key for key, p in self._model.named_parameters() if p.requires_grad}
        trained |= {key for key, _ in self._model.named_buffers()}
        state = self._model.state_dict()
        self._learned[name] = {key: tensor.cpu().clone() for key, tensor in state.items() if key in trained}
        self.rounds[name] += 1
        self._spent[name] += budget

    def seconds_of_one_full_unit(self) -> float:
        self._load(next(iter(self._named)))
        with kept_random_state(self._devices):
            start = time.perf_counter()
            self._train(self._model, 1)
            return time.perf_counter() - start

    def restore(self) -> None:
        self._model.load_state_dict(self._initial)
        for module, training in self._training:
            module.training = training
        self._model.zero_grad()

    def candidate(self, name: str) -> Candidate:
        return Candidate(name, self.metrics[name], self._spent[name], self.rounds[name], self._loaded[name])

    def _load(self, name: str) -> None:
        self.restore()
        given = self._named[name]
        weights = given if isinstance(given, Mapping) else read_weights(given)
        try:
            loaded = load_weights(self._model, weights)
        except WeightsError as error:
            raise WeightsError(f"{name}: {error}") from error
        if len(loaded.matched) < len(loaded.missing):
            raise AlchemyError(
                f"{name} is a checkpoint of another network than {type(unwrap(self._model)).__name__}: "
                f"{loaded.summary()}; build the network that it was saved from"
            )
        self._loaded[name] = loaded
        self._model.load_state_dict(self._learned.get(name, {}), strict=False)


def _key(sign: int, metric: float) -> float:
    return sign * metric if math.isfinite(metric) else -math.inf


def _named(checkpoints: Checkpoints) -> dict[str, Any]:
    if isinstance(checkpoints, Mapping):
        named: dict[str, Any] = dict(checkpoints)
    else:
        paths = [Path(path) for path in checkpoints]
        stems = [path.name for path in paths]
        named = {stem if stems.count(stem) == 1 else str(path): path for stem, path in zip(stems, paths, strict=True)}
    if not named:
        raise AlchemyError("there is no checkpoint to rank; give at least one path or state dict")
    return named


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        lowest = 2 if name == "halving" else 1
        if value is not None and (value % 1 != 0 or value < lowest):
            raise AlchemyError(f"{name} is a whole number from {lowest}, not {value}")

"""Rank checkpoints for a task by a norm-only training of each, instead of fine-tuning all of them."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layertune.alchemy.norms import norm_only
from layertune.alchemy.snapshot import Snapshot
from layertune.errors import AlchemyError, WeightsError
from layertune.layers.names import unwrap
from layertune.restoring import cuda_devices_of, kept_attributes, kept_random_state, seed_generators
from layertune.weights.loading import Loaded, load_weights, read_weights

__all__ = ["Candidate", "Ranking", "rank_checkpoints"]

Train = Callable[[nn.Module, int], object]
Evaluate = Callable[[nn.Module], float]
Checkpoints = Mapping[str, str | Path | Mapping[str, Tensor]] | Sequence[str | Path]


@dataclass(frozen=True)
class Candidate:
    """One checkpoint of a ranking.

    Attributes:
        name: The name that was given for it, or the name of its file.
        metric: The validation metric after its norm-only training.
        spent: The sum of the budgets that the checkpoint was trained with, over all rounds.
        rounds: The number of rounds that it took part in; 1 without successive halving.
        loaded: Which of its tensors were loaded into the network.
    """

    name: str
    metric: float
    spent: int
    rounds: int
    loaded: Loaded


@dataclass(frozen=True)
class Ranking:
    """Checkpoints in the order of their metric, and what it cost to find the order.

    Attributes:
        candidates: All checkpoints, the best first.
        spent: The budget of all norm-only trainings together.
        seconds: The time that they took, including the evaluation of the metric.
        full_budget: The budget that fine-tuning all checkpoints would take, if it was given.
        full_seconds: The time that it would take, estimated from one unit of full training without an evaluation.
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
    """Rank checkpoints by the metric after a norm-only training of each (Network Alchemy, sec. 4.4).

    Every checkpoint starts from the same network: tensors that the checkpoint lacks (a new head) have the same values
    for all, buffers and attributes of modules are restored in between, and the random numbers of torch, NumPy and
    Python start from the same seed. At the end the network is as it was before, without gradients.

    With ``halving=2`` the better half of the checkpoints trains on, twice as long, until ``keep`` are left. Those that
    took part in more rounds rank higher. Learned gammas are kept from round to round; an optimizer that ``train``
    makes is not.

    Args:
        checkpoints: Paths of files, or a mapping from names to paths or state dicts.
        model: The network to train. A checkpoint with another head is loaded as far as it fits.
        train: Function called as ``train(model, budget)``; it trains the parameters that require a gradient.
        evaluate: Function that returns the validation metric of a network.
        budget: Budget of each checkpoint in the first round, in units of ``train``, such as epochs or steps.
        halving: The factor by which the number of checkpoints is divided after each round and the budget multiplied,
            at least 2. By default there is one round.
        keep: Number of checkpoints at which halving stops.
        higher_is_better: ``False`` if the metric is a loss.
        full_budget: Budget of fine-tuning one checkpoint. If it is given, one unit of full training is timed.
        biases: Whether biases are trained too.
        head: Names of parameters that are trained too, as ``map_layers(...).head.parameters`` for a new head.
        seed: Seed of the random numbers.

    Returns:
        The checkpoints, the best first, and the cost of the ranking. A metric that is not finite ranks last.

    Raises:
        AlchemyError: There is no checkpoint, a number is out of range, a checkpoint belongs to another network (less
            than half of the parameters outside the head match), or the network cannot train under
            ``torch.inference_mode()``.
        WeightsError: A file is no checkpoint, nothing in it fits, or it holds NaN.
        ModelError: The network has no norm with a gamma.

    Example:
        >>> import torch
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
    """Trains and evaluates one checkpoint at a time in one network."""

    def __init__(
        self, model: nn.Module, named: Mapping[str, Any], train: Train, evaluate: Evaluate, trained: Any, seed: int
    ) -> None:
        self.metrics: dict[str, float] = {}
        self.rounds = dict.fromkeys(named, 0)
        self._spent = dict.fromkeys(named, 0)
        self._loaded: dict[str, Loaded] = {}
        self._learned: dict[str, dict[str, Tensor]] = {}
        self._model, self._named, self._trained, self._seed = model, named, trained, seed
        self._train, self._evaluate = train, evaluate
        self._snapshot = Snapshot(model)
        self._devices = cuda_devices_of(model.parameters())

    def run(self, name: str, budget: int) -> None:
        """Train and evaluate a checkpoint for one round."""
        self._load(name)
        with kept_random_state(self._devices), kept_attributes(self._model), norm_only(self._model, **self._trained):
            seed_generators(self._seed + self.rounds[name])
            self._train(self._model, budget)
            self.metrics[name] = float(self._evaluate(self._model))
            moved = [key for key, parameter in self._model.named_parameters() if parameter.requires_grad]
            moved += [key for key, _ in self._model.named_buffers()]
            self._learned[name] = {key: value.cpu() for key, value in self._snapshot.values(moved).items()}
        self.rounds[name] += 1
        self._spent[name] += budget

    def seconds_of_one_full_unit(self) -> float:
        """Time one unit of full training."""
        self._load(next(iter(self._named)))
        with kept_random_state(self._devices), kept_attributes(self._model):
            start = time.perf_counter()
            self._train(self._model, 1)
            return time.perf_counter() - start

    def restore(self) -> None:
        """Give the network the values that it had at first."""
        self._snapshot.restore()

    def candidate(self, name: str) -> Candidate:
        """Return the result of a checkpoint."""
        return Candidate(name, self.metrics[name], self._spent[name], self.rounds[name], self._loaded[name])

    def _load(self, name: str) -> None:
        self.restore()
        checkpoint = self._named[name]
        weights = checkpoint if isinstance(checkpoint, Mapping) else read_weights(checkpoint)
        try:
            # The share is checked below, where the error can say that it is another network's checkpoint.
            loaded = load_weights(self._model, weights, allow_partial=True)
        except WeightsError as error:
            raise WeightsError(f"{name}: {error}") from error
        if not loaded.suffices():
            raise AlchemyError(
                f"{name} is a checkpoint of another network than {type(unwrap(self._model)).__name__}: "
                f"{loaded.summary()}; build the network that it was saved from"
            )
        self._loaded[name] = loaded
        self._snapshot.set(self._learned.get(name, {}))


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
            raise AlchemyError(f"{name} must be a whole number from {lowest}, not {value}")

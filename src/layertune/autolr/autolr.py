"""AutoLR: layer-wise learning rates, adjusted by trial and error within each epoch; a baseline for MetaLR."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.autolr.weight_variation import (
    first_target,
    mended_target,
    sorting_quality,
    weight_variation,
    weights_by_layer,
)
from layertune.errors import OptimizerError
from layertune.rates.attachment import LRMultiplier, group_layer_names, require_optimizer
from layertune.rates.stand_in import StandIn

__all__ = ["AutoLR", "LRTrial"]

SCALE, EPOCHS = "auto_scale", "auto_epochs"
LOWEST_THRESHOLD = 0.8  # the threshold tau falls by RELAXATION each epoch while it is above this
RELAXATION = 0.99
DIVERGED = 0.1  # the factor on the rate of a layer with weights that became infinite or NaN


class Resumable(Protocol):
    """An object whose state can be restored: a schedule, a gradient scaler, an average of weights."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


@dataclass(frozen=True)
class LRTrial:
    """One trial of an epoch.

    Attributes:
        epoch: Number of the epoch, counted from 1.
        number: Number of the trial in its epoch, counted from 1.
        lrs: The learning rate of each layer at the end of the trial, stem and classifier included.
        variations: The weight variation of each layer between stem and classifier, shallow to deep.
        target: The variations that the next trial of the epoch aims at. The target is ``None`` for an accepted trial,
            and for one that diverged before the epoch had a target.
        quality: The sorting quality of the variations; minus infinity for a trial that diverged.
        accepted: Whether the quality reached the epoch's threshold.
    """

    epoch: int
    number: int
    lrs: Mapping[str, float]
    variations: Mapping[str, float]
    target: Sequence[float] | None
    quality: float
    accepted: bool


class AutoLR(LRMultiplier):
    """Adjust the layers' rates until weight variation rises with depth (Ro and Choi, AAAI 2021).

    Each epoch is tried with the present rates. If the sorting quality of its weight variations reaches the threshold
    tau, the trial is accepted. Otherwise model and optimizer are restored to the start of the epoch, the rates are
    adjusted, rate_i <- rate_i w_i / v_i for a target w of the variation v, and the epoch is trained again. tau falls by
    1 % each epoch while it is above 0.8. The layers are those that the param groups name, in order of their depth. The
    first is the stem; its rate is ``stem_factor`` times that of the next layer. The last is the classifier; its rate is
    not adjusted. Variations are measured on weights of at least two dimensions (convolutions; linear layers).

    As with ``MetaLR`` the schedule keeps ``lr``. AutoLR adjusts a factor on it, ``group["auto_scale"]``, which is saved
    with the optimizer's ``state_dict`` together with the number of epochs, so that a run can be resumed after any
    finished epoch. Memory: up to two copies of model and optimizer state, and one of the weights.

    Where the published code has no answer: after ``max_trials`` the best trial is kept, with a warning; targets stay
    above 0; a layer that did not move keeps its rate. A trial that diverged is not kept: the rate of each layer whose
    weights became infinite or NaN is divided by ten. Momentum is restored to the start of the epoch, where that code
    starts each trial without momentum.

    Args:
        model: The network that is trained.
        optimizer: An optimizer over ``param_groups``. The paper uses SGD with Nesterov momentum 0.9, weight decay 5e-4.
        threshold: The threshold tau of the first epoch, in (0, 1]. Later epochs lower it.
        f_min: Shallow end of the first target, as a multiple of the least variation, > 0.
        f_max: Deep end of the first target, as a multiple of the largest variation, > 0.
        stem_factor: Rate of the stem as a multiple of that of the next layer, > 0.
        max_trials: Largest number of trials of one epoch, >= 1. The attribute may be lowered while an epoch runs.
        also: Further objects to restore with model and optimizer, for instance a schedule that moves within the epoch.

    Raises:
        OptimizerError: A setting is out of range, there are fewer than two layers between stem and classifier, a layer
            has no weights, or the learning rates are multiplied already.

    Example:
        >>> import torch
        >>> from layertune import map_layers, param_groups
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
        >>> groups = param_groups(net, map_layers(net, torch.empty(2, 4)), lr=0.01)
        >>> autolr = AutoLR(net, torch.optim.SGD(groups, lr=0.01), max_trials=5)
        >>> for epoch in range(3):
        ...     for trial in autolr.epoch():
        ...         for _ in range(4):  # an ordinary epoch of training
        ...             autolr.optimizer.zero_grad()
        ...             net(torch.ones(2, 4)).square().mean().backward()
        ...             autolr.optimizer.step()
        >>> [trial.epoch for trial in autolr.trials if trial.accepted]
        [1, 2, 3]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        threshold: float = 0.94,
        f_min: float = 2.0,
        f_max: float = 0.4,
        stem_factor: float = 0.5,
        max_trials: int = 20,
        also: Sequence[Resumable] = (),
    ) -> None:
        _check_settings(threshold, {"f_min": f_min, "f_max": f_max, "stem_factor": stem_factor}, max_trials)
        require_optimizer(optimizer)
        self.model = model
        self.first_threshold = threshold
        self.f_min = f_min
        self.f_max = f_max
        self.stem_factor = stem_factor
        self.max_trials = max_trials
        self.trials: list[LRTrial] = []
        self._resumed: tuple[Resumable, ...] = (model, optimizer, *also)
        self._weights = weights_by_layer(optimizer)
        self._stem, *self._between, self._head = self._weights
        super().__init__(optimizer)

    @property
    def epochs(self) -> int:
        """Number of finished epochs since the start of the run, resumed ones included."""
        return int(self.optimizer.param_groups[0].get(EPOCHS, 0))

    @property
    def threshold(self) -> float:
        """The threshold tau of the present or the next epoch."""
        tau = self.first_threshold
        for _ in range(self.epochs):
            tau = tau * RELAXATION if tau > LOWEST_THRESHOLD else tau
        return tau

    @property
    def lrs(self) -> dict[str, float]:
        """The present learning rate of each layer: the schedule's times the adjusted factor."""
        groups = self.optimizer.param_groups
        return {
            name: float(group["lr"]) * factor
            for name, group, factor in zip(group_layer_names(groups), groups, self._factors(), strict=True)
        }

    def epoch(self) -> Iterator[int]:
        """Try one epoch until its weight variations rise with depth: ``for trial in autolr.epoch(): train()``.

        If the loop is left early, model and optimizer stay as they are then, and the epoch is not counted.

        Yields:
            The number of the trial, counted from 1. The body of the loop trains one epoch.

        Raises:
            OptimizerError: No weight between stem and classifier moved in a trial.
        """
        start = self._snapshot()
        before = {name: [weight.detach().clone() for weight in self._weights[name]] for name in self._between}
        best, best_quality, target = None, -math.inf, None
        for number in count(1):
            yield number
            trial = self._tried(before, number, target)
            self.trials.append(trial)
            if trial.accepted:
                break
            if trial.quality > best_quality:
                best, best_quality = self._snapshot(), trial.quality
            target = trial.target
            scales = self._adjusted(trial)
            self._load(start)
            self._write(scales)
            if number >= self.max_trials:
                self._keep(best, best_quality, number)
                break
        self._count_epoch()

    def detach(self) -> None:
        """Remove the hooks and what AutoLR has written into the optimizer's param groups."""
        super().detach()
        for group in self.optimizer.param_groups:
            group.pop(SCALE, None)
            group.pop(EPOCHS, None)

    def _tried(self, before: Mapping[str, list[Tensor]], number: int, target: Sequence[float] | None) -> LRTrial:
        """Measure the trial that was just trained. Later trials of an epoch keep its target."""
        moved = {name: weight_variation(before[name], self._weights[name]) for name in self._between}
        values = list(moved.values())
        quality = sorting_quality(values) if all(map(math.isfinite, values)) else -math.inf
        if not any(values):
            raise OptimizerError(
                f"no weight between {self._stem} and {self._head} moved in this epoch; train within the loop over "
                "autolr.epoch(), with the model and the optimizer that AutoLR was given, at a rate above 0"
            )
        accepted = quality >= self.threshold
        if quality == -math.inf or accepted:
            target = None if accepted else target
        elif target is None:
            target = first_target(values, self.f_min, self.f_max) if self.epochs == 0 else mended_target(values)
        return LRTrial(self.epochs + 1, number, self.lrs, moved, target, quality, accepted)

    def _adjusted(self, trial: LRTrial) -> dict[str, float]:
        """Return the factor of each layer between stem and classifier for the next trial."""
        scales = self._scales()
        if trial.quality == -math.inf or trial.target is None:
            return {name: scales[name] * (1 if math.isfinite(v) else DIVERGED) for name, v in trial.variations.items()}
        aims = zip(trial.variations.items(), trial.target, strict=True)
        return {name: scales[name] * (w / v if v > 0 else 1) for (name, v), w in aims}

    def _keep(self, best: list[Any] | None, quality: float, trials: int) -> None:
        """End an epoch in which none of the trials made was good enough."""
        if best is None:
            outcome = "all of them diverged, so the epoch is left out and the next one starts with lower rates"
        else:
            self._load(best)
            outcome = f"the best trial is kept, of quality {quality:.3f}"
        warnings.warn(
            f"none of {trials} trials of epoch {self.epochs + 1} reached the sorting quality "
            f"{self.threshold:.3f}: {outcome}",
            RuntimeWarning,
            stacklevel=3,
        )

    def _scales(self) -> dict[str, float]:
        groups = self.optimizer.param_groups
        names = group_layer_names(groups)
        return {name: float(group.get(SCALE, 1.0)) for name, group in zip(names, groups, strict=True)}

    def _factors(self) -> list[float]:
        """Return the factor on each group's ``lr``. The stem's follows from the rate of the next layer."""
        groups = self.optimizer.param_groups
        names, scales = group_layer_names(groups), self._scales()
        rates = {name: float(group["lr"]) for name, group in zip(names, groups, strict=True)}
        second = self._between[0]
        if rates[self._stem] > 0:
            scales[self._stem] = self.stem_factor * scales[second] * rates[second] / rates[self._stem]
        return [scales[name] for name in names]

    def _write(self, scales: Mapping[str, float]) -> None:
        for name, group in zip(
            group_layer_names(self.optimizer.param_groups), self.optimizer.param_groups, strict=True
        ):
            if name in scales:
                group[SCALE] = scales[name]

    def _count_epoch(self) -> None:
        done = self.epochs + 1
        for group in self.optimizer.param_groups:
            group[EPOCHS] = done

    def _snapshot(self) -> list[Any]:
        return [copy.deepcopy(thing.state_dict()) for thing in self._resumed]

    def _load(self, snapshot: list[Any]) -> None:
        # Optimizers adopt the tensors that they are given and change them in place.
        for thing, state in zip(self._resumed, snapshot, strict=True):
            thing.load_state_dict(copy.deepcopy(state))

    def _prepare_step(self, stand_in: StandIn) -> None:
        stand_in.multiply_lrs(self._factors())


def _check_settings(threshold: float, factors: Mapping[str, float], max_trials: int) -> None:
    if not 0 < threshold <= 1:
        raise OptimizerError(f"threshold must be above 0 and at most 1, not {threshold}")
    for name, value in factors.items():
        if not 0 < value < float("inf"):
            raise OptimizerError(f"{name} must be finite and above 0, not {value}")
    if max_trials < 1:
        raise OptimizerError(f"max_trials must be at least 1, not {max_trials}")

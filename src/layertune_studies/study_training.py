"""How each method trains within its budget: the loop that users write, and nothing that they could not."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from layertune import (
    Alchemy,
    AllLayers,
    AutoLR,
    Convergence,
    GammaPenalty,
    LastLayer,
    LayerMap,
    MetaLR,
    freeze,
    gammas,
    norm_only,
    param_groups,
)
from layertune.policies import Policy
from layertune_studies.demo_train import Run, Task, train_step
from layertune_studies.study_config import Study
from layertune_studies.study_methods import (
    AlchemyMethod,
    AutoLRMethod,
    LastThenAll,
    MetaLRMethod,
    Method,
    NormOnly,
    ProdigyMethod,
)
from layertune_studies.study_settings import Setting, policy_of

__all__ = ["Trained", "Training", "passes_of_step", "steps_of", "train_method"]


@dataclass
class Trained:
    """What a training left behind.

    Attributes:
        steps: of the optimizer, those of rejected trials included.
        passes: forward and backward passes.
        losses: of each step.
        profile: fields of the learned ``LRProfile``, if any.
        lrs: the layers' rates at the end, where a method adjusts them.
        trials: of AutoLR: (epoch, trial, quality, accepted).
    """

    steps: int = 0
    passes: float = 0
    losses: list[float] = field(default_factory=list)
    profile: dict[str, Any] | None = None
    lrs: dict[str, float] | None = None
    trials: list[tuple[int, int, float, bool]] | None = None


@dataclass(frozen=True)
class Training:
    """What a method trains on.

    Attributes:
        study: as its file says.
        network: what is trained.
        layers: its layers.
        task: its batches.
        loss_of: its loss.
        epoch_steps: steps in which all labelled cases are seen once.
        lr: base learning rate.
        tell: told the steps done.
    """

    study: Study
    network: nn.Module
    layers: LayerMap
    task: Task
    loss_of: nn.Module
    epoch_steps: int
    lr: float
    tell: Callable[[int], object]

    def optimizer(self, policy: Policy, lr: float) -> TorchOptimizer:
        """The study's optimizer of the layers that a policy tunes."""
        config = self.study.optimizer
        groups = param_groups(
            self.network,
            self.layers,
            lr=lr,
            policy=policy,
            head_lr=lr * config.head_factor,
            weight_decay=config.weight_decay,
        )
        if config.name == "sgd":
            return SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0)
        return (Adam if config.name == "adam" else AdamW)(groups, lr=lr)

    def schedule(self, optimizer: TorchOptimizer, steps: int) -> LRScheduler | None:
        """The study's schedule over a number of steps."""
        match self.study.optimizer.schedule:
            case "cosine":
                return CosineAnnealingLR(optimizer, steps)
            case "one-cycle":
                rates = [group["lr"] for group in optimizer.param_groups]
                return OneCycleLR(optimizer, rates, total_steps=steps + 1)
            case _:
                return None


def passes_of_step(method: Method) -> float:
    """Forward and backward passes of a step.

    Example:
        >>> passes_of_step(MetaLRMethod(kind="metalr", mode="every", every=10))
        1.1
    """
    if not isinstance(method, MetaLRMethod) or method.mode == "streaming":
        return 1
    return 2 if method.mode == "exact" else 1 + 1 / method.every


def steps_of(study: Study, method: Method) -> int:
    """Steps of a method's training within the budget, at least 1."""
    amount = study.budget.amount
    return amount if study.budget.unit == "steps" else max(1, int(amount / passes_of_step(method) + 1e-9))


def train_method(training: Training, method: Method, setting: Setting) -> Trained:
    """Train in one way.

    Args:
        training: what on.
        method: how.
        setting: which layers.
    """
    steps = steps_of(training.study, method)
    match method:
        case LastThenAll():
            first = min(max(1, round(method.share * steps)), steps - 1) if steps > 1 else 1
            trained = _train_flat(training, LastLayer(), training.lr, first)
            if steps > first:
                trained = _train_flat(training, AllLayers(), training.lr * method.drop, steps - first, trained)
        case AutoLRMethod():
            trained = _train_autolr(training, method, steps)
        case MetaLRMethod():
            trained = _train_metalr(training, method, steps)
        case ProdigyMethod():
            trained = _train_prodigy(training, steps)
        case NormOnly():
            trained = _train_norms(training, method, steps)
        case AlchemyMethod():
            trained = _train_alchemy(training, method, steps)
        case _:
            trained = _train_flat(training, policy_of(setting), training.lr, steps)
    trained.passes = round(trained.steps * passes_of_step(method), 6)
    return trained


def _train_flat(training: Training, policy: Policy, lr: float, steps: int, before: Trained | None = None) -> Trained:
    trained = before or Trained()
    optimizer = training.optimizer(policy, lr)
    run = Run(training.network, optimizer, training.schedule(optimizer, steps))
    if all(policy(training.layers)):
        _steps(training, run, steps, trained)
    else:
        with freeze(training.network, training.layers, policy):
            _steps(training, run, steps, trained)
    return trained


def _train_metalr(training: Training, method: MetaLRMethod, steps: int) -> Trained:
    trained = Trained()
    optimizer = training.optimizer(AllLayers(), training.lr)
    metalr = MetaLR(
        optimizer,
        hyper_lr=method.hyper_lr,
        rule=method.rule,
        min_lr=method.min_lr,
        max_lr=method.max_lr,
        max_change=method.max_change,
        every=method.every if method.mode == "every" else 1,
        streaming=method.mode == "streaming",
    )
    run = Run(training.network, optimizer, training.schedule(optimizer, steps), metalr)
    _steps(training, run, steps, trained)
    trained.lrs = metalr.lrs
    trained.profile = asdict(metalr.profile()) if metalr.history else None
    return trained


def _train_autolr(training: Training, method: AutoLRMethod, steps: int) -> Trained:
    """Epochs until the budget is spent: by passes with rejected trials, by steps without them."""
    trained = Trained()
    optimizer = training.optimizer(AllLayers(), training.lr)
    schedule = training.schedule(optimizer, steps)
    run = Run(training.network, optimizer, schedule)
    autolr = AutoLR(
        training.network,
        optimizer,
        threshold=method.threshold,
        f_min=method.f_min,
        f_max=method.f_max,
        max_trials=method.max_trials,
        also=[schedule] if schedule else [],
    )

    def left() -> int:
        return steps - (
            trained.steps if training.study.budget.unit == "passes" else autolr.epochs * training.epoch_steps
        )

    while left() > 0:
        for _ in autolr.epoch():
            if left() <= 0:
                break  # it ended with a trial that diverged, and the epoch's start is kept
            _steps(training, run, min(training.epoch_steps, left()), trained)
            if left() <= 0 and math.isfinite(trained.losses[-1]):
                break  # what the last trial left is kept, judged or not: an epoch may be longer than the budget
    trained.lrs = autolr.lrs
    trained.trials = [(one.epoch, one.number, one.quality, one.accepted) for one in autolr.trials]
    return trained


def _train_prodigy(training: Training, steps: int) -> Trained:
    from prodigyopt import Prodigy

    trained = Trained()
    # One rate for all layers: Prodigy refuses groups of different rates.
    groups = param_groups(
        training.network, training.layers, lr=training.lr, weight_decay=training.study.optimizer.weight_decay
    )
    optimizer = Prodigy(groups, lr=training.lr)
    _steps(training, Run(training.network, optimizer, training.schedule(optimizer, steps)), steps, trained)
    trained.lrs = {"all": float(optimizer.param_groups[0]["d"]) * training.lr}
    return trained


def _train_norms(training: Training, method: NormOnly, steps: int) -> Trained:
    trained = Trained()
    optimizer = training.optimizer(AllLayers(), training.lr)
    with norm_only(training.network, head=training.layers.head.parameters if method.head else ()):
        _steps(training, Run(training.network, optimizer, training.schedule(optimizer, steps)), steps, trained)
    return trained


def _train_alchemy(training: Training, method: AlchemyMethod, steps: int) -> Trained:
    trained, first = Trained(), round(method.identification * steps)
    optimizer = training.optimizer(AllLayers(), training.lr)
    alchemy = Alchemy(
        training.network,
        optimizer,
        training.task.batch(0)[0][:2],
        threshold=method.threshold,
        quantile=method.quantile,
        whole_layers=True,
        identification=Convergence(limit=1) if first else None,
        modification=method.modification,
        penalty=GammaPenalty(training.network, weight=method.penalty),
        head=training.layers.head.parameters if method.head else (),
    )
    run = Run(training.network, optimizer, training.schedule(optimizer, steps))
    with alchemy:
        if first:
            _steps(training, run, first, trained)
            if not all(bool(gamma.isfinite().all()) for gamma in gammas(training.network).values()):
                return trained  # it diverged, and scores nothing; of such gammas no kernel can be judged
            alchemy.update()
        else:
            alchemy.modify()
        penalised = replace(training, loss_of=_WithPenalty(training.loss_of, alchemy))
        _steps(penalised, run, steps - first, trained)
    return trained


class _WithPenalty(nn.Module):
    """A loss with the penalty of the present phase."""

    def __init__(self, loss_of: nn.Module, alchemy: Alchemy) -> None:
        super().__init__()
        self.loss_of = loss_of
        self.alchemy = alchemy

    def forward(self, output: Tensor, label: Tensor) -> Tensor:
        loss: Tensor = self.loss_of(output, label)
        return loss + self.alchemy.penalty().to(loss.device)


def _steps(training: Training, run: Run, steps: int, trained: Trained) -> None:
    for _ in range(steps):
        train_step(run, training.task, training.loss_of, trained.steps)
        trained.steps += 1
        trained.losses.append(run.log.losses[-1])
        training.tell(trained.steps)
        if not math.isfinite(trained.losses[-1]):
            break  # it will not come back; AutoLR puts such a trial back itself

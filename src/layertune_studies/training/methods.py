"""How each method trains within its budget."""

from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from layertune import (
    Alchemy,
    AllLayers,
    AutoLR,
    Convergence,
    GammaPenalty,
    LastLayer,
    MetaLR,
    freeze,
    gammas,
    norm_only,
    param_groups,
)
from layertune.policies.policies import Policy
from layertune_studies.config.methods import (
    AlchemyMethod,
    AutoLRMethod,
    LastThenAll,
    MetaLRMethod,
    Method,
    NormOnly,
    ProdigyMethod,
)
from layertune_studies.config.study import Study
from layertune_studies.demo_train import Run
from layertune_studies.training.loop import Trained, Training, train_steps
from layertune_studies.training.settings import Setting, policy_of

__all__ = ["passes_of_step", "steps_of", "train_method"]


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
        train_steps(training, run, steps, trained)
    else:
        with freeze(training.network, training.layers, policy):
            train_steps(training, run, steps, trained)
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
    train_steps(training, run, steps, trained)
    trained.lrs = metalr.lrs
    trained.profile = asdict(metalr.profile()) if metalr.history else None
    return trained


def _train_autolr(training: Training, method: AutoLRMethod, steps: int) -> Trained:
    """Epochs until the budget is spent: by passes with rejected trials, by steps without them."""
    trained, by_passes = Trained(), training.study.budget.unit == "passes"
    optimizer = training.optimizer(AllLayers(), training.lr)
    schedule = training.schedule(optimizer, steps)
    autolr = AutoLR(
        training.network,
        optimizer,
        threshold=method.threshold,
        f_min=method.f_min,
        f_max=method.f_max,
        max_trials=method.max_trials,
        also=[] if schedule is None else [_GoesOn(schedule) if by_passes else schedule],
    )
    run = Run(training.network, optimizer, schedule)

    def left() -> int:
        return steps - (trained.steps if by_passes else autolr.epochs * training.epoch_steps)

    while left() > 0:
        autolr.max_trials = method.max_trials
        for number in autolr.epoch():
            if by_passes and left() <= training.epoch_steps:
                autolr.max_trials = number  # the budget ends with this trial, and the best one of the epoch is kept
            train_steps(training, run, min(training.epoch_steps, left()), trained)
    trained.lrs = autolr.lrs
    trained.trials = [(one.epoch, one.number, one.quality, one.accepted) for one in autolr.trials]
    return trained


class _GoesOn:
    """A schedule that a rejected trial does not put back: it falls with the passes, as every other method's does."""

    def __init__(self, schedule: LRScheduler) -> None:
        self.schedule = schedule

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _: Any) -> None:
        """The optimizer has its rates of the epoch's start again."""
        for group, lr in zip(self.schedule.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = lr


def _train_prodigy(training: Training, steps: int) -> Trained:
    from prodigyopt import Prodigy

    trained = Trained()
    # One rate for all layers: Prodigy refuses groups of different rates.
    groups = param_groups(
        training.network, training.layers, lr=training.lr, weight_decay=training.study.optimizer.weight_decay
    )
    optimizer = Prodigy(groups, lr=training.lr)
    train_steps(training, Run(training.network, optimizer, training.schedule(optimizer, steps)), steps, trained)
    trained.lrs = {"all": float(optimizer.param_groups[0]["d"]) * training.lr}
    return trained


def _train_norms(training: Training, method: NormOnly, steps: int) -> Trained:
    trained = Trained()
    optimizer = training.optimizer(AllLayers(), training.lr)
    with norm_only(training.network, head=training.layers.head.parameters if method.head else ()):
        train_steps(training, Run(training.network, optimizer, training.schedule(optimizer, steps)), steps, trained)
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
            train_steps(training, run, first, trained)
            if not all(bool(gamma.isfinite().all()) for gamma in gammas(training.network).values()):
                return trained  # it diverged, and scores nothing; of such gammas no kernel can be judged
            alchemy.update()
        else:
            alchemy.modify()
        penalised = replace(training, loss_of=_WithPenalty(training.loss_of, alchemy))
        train_steps(penalised, run, steps - first, trained)
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

"""How each method trains within its budget: one training, which asks the method for what differs."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
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
    gammas,
    norm_only,
)
from layertune_studies.config.methods import (
    AlchemyMethod,
    AutoLRMethod,
    L2SPMethod,
    LPFTMethod,
    Method,
    NormOnly,
    TwoParts,
)
from layertune_studies.config.study import Study
from layertune_studies.training.budget import passes_of_step, steps_of
from layertune_studies.training.loop import Part, Run, Training, TrainingResult, train_steps
from layertune_studies.training.opponents import OPPONENTS, ProbePart
from layertune_studies.training.settings import Setting, policy_of

__all__ = ["train"]


def train(training: Training, method: Method, setting: Setting) -> TrainingResult:
    """Train a network by a method.

    Args:
        training: The network and what it is trained on.
        method: The method, as the study's file describes it.
        setting: The setting of the method, which says which layers are trained.
    """
    trained = TrainingResult()
    start = time.process_time()
    for part in _parts(training, method, setting):
        optimizer = part.optimizer()
        run = Run(training.network, optimizer, part.schedule(optimizer))
        with part.restricted(run):
            part.attach(run)
            part.take_steps(run, trained)
            part.report(run, trained)
    trained.cpu_seconds = time.process_time() - start
    trained.passes = round(trained.passes + trained.steps * passes_of_step(method), 6)
    return trained


class AutoLRPart(Part):
    """Epochs until the budget is spent; with a budget of passes, rejected trials count too."""

    @cached_property
    def by_passes(self) -> bool:
        return self.training.study.budget.unit == "passes"

    def restricted(self, run: Run) -> AbstractContextManager[object]:
        schedule = run.schedule
        self.autolr = AutoLR(
            self.training.network,
            run.optimizer,
            threshold=self.method.threshold,
            f_min=self.method.f_min,
            f_max=self.method.f_max,
            max_trials=self.method.max_trials,
            also=[] if schedule is None else [_NeverReset(schedule) if self.by_passes else schedule],
        )
        return nullcontext()

    def take_steps(self, run: Run, trained: TrainingResult) -> None:
        epoch_steps = self.training.epoch_steps

        def left() -> int:
            return self.steps - (trained.steps if self.by_passes else self.autolr.epochs * epoch_steps)

        while left() > 0:
            self.autolr.max_trials = self.method.max_trials
            for number in self.autolr.epoch():
                if self.by_passes and left() <= epoch_steps:
                    self.autolr.max_trials = number  # the budget ends with this trial; the epoch's best one is kept
                train_steps(self.training, run, min(epoch_steps, left()), trained)

    def report(self, run: Run, trained: TrainingResult) -> None:  # noqa: ARG002
        trained.lrs = self.autolr.lrs
        trained.trials = [(one.epoch, one.number, one.quality, one.accepted) for one in self.autolr.trials]


class _NeverReset:
    """A schedule that a rejected trial does not reset: it falls with the passes, as that of every other method."""

    def __init__(self, schedule: LRScheduler) -> None:
        self.schedule = schedule

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _: Any) -> None:
        """Set the present rates again, since the optimizer's own reset brought back those of the epoch's start."""
        for group, lr in zip(self.schedule.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = lr


class NormOnlyPart(Part):
    """The normalisation layers alone."""

    def restricted(self, run: Run) -> AbstractContextManager[object]:  # noqa: ARG002
        return norm_only(self.training.network, head=_head(self.training, self.method))


class AlchemyPart(Part):
    """The three phases of Network Alchemy, the first of which takes a share of the steps."""

    def restricted(self, run: Run) -> AbstractContextManager[object]:
        self.first = round(self.method.identification * self.steps)
        self.alchemy = Alchemy(
            self.training.network,
            run.optimizer,
            self.training.task.batch(0)[0][:2],
            threshold=self.method.threshold,
            quantile=self.method.quantile,
            whole_layers=True,
            identification=Convergence(limit=1) if self.first else None,
            modification=self.method.modification,
            penalty=GammaPenalty(self.training.network, weight=self.method.penalty),
            head=_head(self.training, self.method),
            seed=self.training.seed,
        )
        return self.alchemy

    def take_steps(self, run: Run, trained: TrainingResult) -> None:
        if self.first:
            train_steps(self.training, run, self.first, trained)
            if not all(bool(gamma.isfinite().all()) for gamma in gammas(self.training.network).values()):
                return  # it diverged and scores 0; no kernel can be judged by such gammas
            self.alchemy.update()
        else:
            self.alchemy.modify()
        if self.alchemy.redundant is not None:
            trained.redundant = self.alchemy.redundant.count
        penalised = replace(self.training, loss_of=_WithPenalty(self.training.loss_of, self.alchemy))
        train_steps(penalised, run, self.steps - self.first, trained)


class _WithPenalty(nn.Module):
    """A loss plus the penalty of the present phase."""

    def __init__(self, loss_of: nn.Module, alchemy: Alchemy) -> None:
        super().__init__()
        self.loss_of = loss_of
        self.alchemy = alchemy

    def forward(self, output: Tensor, label: Tensor) -> Tensor:
        loss: Tensor = self.loss_of(output, label)
        return loss + self.alchemy.penalty().to(loss.device)


PARTS: dict[type[Method], type[Part]] = {
    AutoLRMethod: AutoLRPart,
    NormOnly: NormOnlyPart,
    AlchemyMethod: AlchemyPart,
    **OPPONENTS,
}


def _parts(training: Training, method: Method, setting: Setting) -> list[Part]:
    """Return the parts of a method's training, each with an optimizer and a schedule of its own."""
    steps = steps_of(training.study, method)
    if not steps:
        return []
    if isinstance(method, TwoParts):
        first = min(max(1, round(method.share * steps)), steps - 1) if steps > 1 else 1
        head_part = ProbePart if isinstance(method, LPFTMethod) else Part
        head = head_part(training, method, LastLayer(), training.lr, first)
        rest = Part(training, method, AllLayers(), training.lr * method.drop, steps - first)
        return [head, rest] if rest.steps else [head]
    if isinstance(method, L2SPMethod):
        method = method.model_copy(update={"alphas": setting.numbers})
    return [_part_of(training.study, method)(training, method, policy_of(setting), training.lr, steps)]


def _part_of(study: Study, method: Method) -> type[Part]:
    if study.loop == "lightning":
        from layertune_studies.training.lightning import LightningPart

        return LightningPart
    return PARTS.get(type(method), Part)


def _head(training: Training, method: NormOnly | AlchemyMethod) -> tuple[str, ...]:
    return tuple(training.layers.head.parameters) if method.head else ()

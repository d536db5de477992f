"""How the methods of other papers and packages train within a study's budget."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from layertune import (
    L2SP,
    AutoRGN,
    GradualUnfreezing,
    OptimizerError,
    PhasedFreezing,
    evaluation_weights,
    freeze,
    make_optimizer,
    param_groups,
)
from layertune.hosts.evaluation_weights import mode_of, renew_statistics
from layertune_studies.config.methods import (
    AutoRGNMethod,
    DAdaptMethod,
    GradualUnfreezingMethod,
    L2SPMethod,
    LDoGMethod,
    Method,
    ProdigyMethod,
    ProdigySplitMethod,
    ScheduleFreeMethod,
)
from layertune_studies.training.loop import Part, Run, TrainingResult, train_steps

__all__ = ["OPPONENTS", "ProbePart"]

RENEWAL = 50  # batches, as the README of schedulefree has it
FORWARD = 1 / 3  # of a pass, which is forward and backward


class OptimizerPart(Part):
    """All layers by an optimizer of another package.

    Attributes:
        head_factor: Whether the head has a rate of its own, where the study says so.
    """

    head_factor = False

    def optimizer(self) -> Optimizer:
        config = self.training.study.optimizer
        head_lr = self.lr * config.head_factor if self.head_factor else None
        network, layers = self.training.network, self.training.layers
        groups = param_groups(network, layers, lr=self.lr, head_lr=head_lr, weight_decay=config.weight_decay)
        return make_optimizer(self.method.kind, groups, lr=self.lr, **{**self.defaults(), **self.method.options()})

    def defaults(self) -> dict[str, Any]:
        """Return options that follow from the network or the number of steps."""
        return {}


class EstimatePart(OptimizerPart):
    """One estimate d of the step size for all layers, or one for each."""

    def report(self, run: Run, trained: TrainingResult) -> None:
        rates = {group["layer"]: float(group["d"]) * self.lr for group in run.optimizer.param_groups}
        one = len(set(rates.values())) == 1
        trained.lrs = {"all": next(iter(rates.values()))} if one else rates


class DAdaptPart(EstimatePart):
    """One estimate for all layers, on which the head has its factor."""

    head_factor = True


class LDoGPart(OptimizerPart):
    """L-DoG without a schedule, with the average of the weights beside it."""

    diverged = False

    def defaults(self) -> dict[str, Any]:
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.training.network.modules())
        return {"reps_rel": 1e-4 if has_batch_norm else 1e-6}

    def schedule(self, optimizer: Optimizer) -> LRScheduler | None:  # noqa: ARG002 - the average takes its place
        return None

    def restricted(self, run: Run) -> AbstractContextManager[object]:
        if self.method.average:
            from dog import PolynomialDecayAverager

            averager = PolynomialDecayAverager(run.network)
            run.optimizer.register_step_post_hook(lambda *_: averager.step())
            self.average: nn.Module = averager.averaged_model
            run.evaluation = lambda: _weights_of(run.network, self.average)
        return nullcontext()

    def take_steps(self, run: Run, trained: TrainingResult) -> None:
        try:
            super().take_steps(run, trained)
        except OptimizerError:
            grads = [p.grad for p in run.network.parameters() if p.grad is not None]
            if get_total_norm(grads).isfinite():
                raise
            self.diverged = True
            with torch.no_grad():  # as any other optimizer leaves the weights of a training that diverged
                for parameter in run.network.parameters():
                    parameter.fill_(math.nan)

    def report(self, run: Run, trained: TrainingResult) -> None:
        etas: dict[str, list[float]] = {}
        for group in run.optimizer.param_groups:
            etas.setdefault(group["layer"], []).extend(float(eta) for eta in group.get("eta", ()))
        trained.lrs = {layer: sum(values) / len(values) for layer, values in etas.items() if values}
        if self.method.average and not self.diverged:
            run.network.load_state_dict(self.average.state_dict())


@contextmanager
def _weights_of(network: nn.Module, average: nn.Module) -> Iterator[None]:
    """Put the averaged weights into a network for the length of the block."""
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(average.state_dict())
    try:
        yield
    finally:
        network.load_state_dict(own)


class ScheduleFreePart(OptimizerPart):
    """Schedule-free AdamW, evaluated at its own average, with the statistics of batch norms renewed there."""

    head_factor = True

    def defaults(self) -> dict[str, Any]:
        return {"warmup_steps": round(self.method.warmup * self.steps)}

    def schedule(self, optimizer: Optimizer) -> LRScheduler | None:  # noqa: ARG002 - it is free of one
        return None

    def restricted(self, run: Run) -> AbstractContextManager[object]:
        run.evaluation = lambda: evaluation_weights(run.optimizer, run.network, self._inputs())
        return nullcontext()

    def report(self, run: Run, trained: TrainingResult) -> None:
        mode_of(run.optimizer).eval()
        trained.passes += FORWARD * renew_statistics(run.network, self._inputs())

    def _inputs(self) -> Iterator[Tensor]:
        """Yield the inputs of training batches, those after the last step."""
        for step in range(self.steps, self.steps + RENEWAL):
            yield self.training.task.batch(step)[0]


class AutoRGNPart(Part):
    """All layers at rates in proportion to their relative gradient norms."""

    def restricted(self, run: Run) -> AbstractContextManager[object]:
        self.auto_rgn = AutoRGN(run.optimizer, batches=self.method.batches)
        return nullcontext()

    def report(self, run: Run, trained: TrainingResult) -> None:
        factors = self.auto_rgn.factors
        # A schedule may have brought the rates themselves to 0.
        trained.lrs = {
            group["layer"]: float(group.get("initial_lr", group["lr"])) * factors[group["layer"]]
            for group in run.optimizer.param_groups
        }


class L2SPPart(Part):
    """All layers at one rate, with a penalty towards the pre-trained weights in place of weight decay."""

    def optimizer(self) -> Optimizer:
        return self.training.optimizer(self.policy, self.lr, weight_decay=0.0)

    def restricted(self, run: Run) -> AbstractContextManager[object]:
        (alpha,) = self.method.alphas
        penalty = L2SP(run.network, self.training.layers, alpha=alpha, beta=self.method.beta)
        run.optimizer.register_step_pre_hook(lambda *_: penalty.add_gradient(run.optimizer))
        return nullcontext()


class GradualUnfreezingPart(Part):
    """The last layer, and one depth more in each phase, with one optimizer and one schedule."""

    def take_steps(self, run: Run, trained: TrainingResult) -> None:
        training = self.training
        with PhasedFreezing(run.network, training.layers, GradualUnfreezing()) as freezing:
            steps = self.method.phase or max(1, min(training.epoch_steps, self.steps // freezing.count))
            for number, length in enumerate((*repeat(steps, freezing.count - 1), self.steps), 1):
                freezing.enter(number)
                train_steps(training, run, min(length, self.steps - trained.steps), trained)
                if not math.isfinite(trained.losses[-1]):
                    break


class ProbePart(Part):
    """The first part of LP-FT: the head on features that are frozen together with their statistics."""

    def restricted(self, run: Run) -> AbstractContextManager[object]:
        """Freeze all layers but the head, with the statistics of their norms."""
        if all(self.policy(self.training.layers)):
            return nullcontext()
        return freeze(run.network, self.training.layers, self.policy, statistics=True)


OPPONENTS: dict[type[Method], type[Part]] = {
    ProdigyMethod: EstimatePart,
    ProdigySplitMethod: EstimatePart,
    LDoGMethod: LDoGPart,
    ScheduleFreeMethod: ScheduleFreePart,
    DAdaptMethod: DAdaptPart,
    AutoRGNMethod: AutoRGNPart,
    L2SPMethod: L2SPPart,
    GradualUnfreezingMethod: GradualUnfreezingPart,
}

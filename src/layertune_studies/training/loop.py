"""The training loop of a study: what a trial trains on, its state, and its steps."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from layertune import LayerMap, LRProfile, MetaLR, freeze, meta_pass, param_groups
from layertune.policies.policies import Policy
from layertune_studies.config.study import Study
from layertune_studies.data.case import Batch

__all__ = ["Part", "Run", "Task", "Training", "TrainingResult", "train_step", "train_steps"]


@dataclass(frozen=True)
class Task:
    """The batches that a network is trained on.

    Attributes:
        batch: Returns the training batch of a step.
        meta_batch: Returns the meta batch of a step; called only at steps where MetaLR needs one. None: there are none.
    """

    batch: Callable[[int], Batch]
    meta_batch: Callable[[int], Batch] | None


@dataclass
class Run:
    """Everything that a training changes.

    Attributes:
        network: The network that is trained.
        optimizer: The optimizer of its param groups.
        schedule: The schedule of the optimizer's learning rate, or None for a constant rate.
        metalr: The ``MetaLR`` that is attached to the optimizer, or None.
        evaluation: Makes a context in which the network has the weights to evaluate, where those are not the trained
            ones.
    """

    network: nn.Module
    optimizer: TorchOptimizer
    schedule: LRScheduler | None = None
    metalr: MetaLR | None = None
    evaluation: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass
class TrainingResult:
    """The outcome of a training.

    Attributes:
        steps: Steps of the optimizer, including those of rejected trials.
        passes: Forward and backward passes.
        losses: Training loss of each step.
        profile: Fields of the learned ``LRProfile``, or None if no rates were learned.
        lrs: Learning rate of each layer at the end, or None if the method does not adjust them.
        cpu_seconds: Processor time of the training in seconds.
        trials: AutoLR's trials as tuples (epoch, trial, quality, accepted), or None for other methods.
        redundant: The number of kernels that Network Alchemy gave a fresh start, or None for other methods.
        curve: Pairs of a step and the score on the validation cases before it, if the study wants a learning curve.
        seconds: Time of each step in seconds, without making batches and measuring scores.
    """

    steps: int = 0
    passes: float = 0
    losses: list[float] = field(default_factory=list)
    profile: dict[str, Any] | None = None
    lrs: dict[str, float] | None = None
    cpu_seconds: float = field(default=0.0, compare=False)
    trials: list[tuple[int, int, float, bool]] | None = None
    redundant: int | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)

    def set_profile(self, lrs: dict[str, float], profile: LRProfile | None) -> None:
        """Record the learned rates.

        Args:
            lrs: Learning rate of each layer at the end.
            profile: What was learned over time, or None if nothing was.
        """
        self.lrs = lrs
        self.profile = None if profile is None else asdict(profile)


@dataclass(frozen=True)
class Training:
    """A network at its start, and what it is trained on.

    Attributes:
        study: The study that the trial belongs to.
        network: The network that is trained.
        layers: The layers of the network.
        task: The training batches, and the meta batches if the method needs some.
        loss_of: The loss, called with the network's output and the labels.
        epoch_steps: Number of steps in which all labelled cases are seen once.
        lr: The base learning rate, > 0, which a policy's scales multiply.
        tell: Progress callback, called with the number of steps done.
        seed: Seed of kernels that start afresh.
        score: A function that returns the score of the network on the validation cases, for the learning curve.
    """

    study: Study
    network: nn.Module
    layers: LayerMap
    task: Task
    loss_of: nn.Module
    epoch_steps: int
    lr: float
    tell: Callable[[int], object]
    seed: int = 0
    score: Callable[[], float] = lambda: 0.0

    def optimizer(self, policy: Policy, lr: float, *, weight_decay: float | None = None) -> TorchOptimizer:
        """Make the study's optimizer of the layers that a policy tunes.

        Args:
            policy: The policy.
            lr: Base learning rate.
            weight_decay: The weight decay, if it is not the study's.
        """
        config = self.study.optimizer
        groups = param_groups(
            self.network,
            self.layers,
            lr=lr,
            policy=policy,
            head_lr=lr * config.head_factor,
            weight_decay=config.weight_decay if weight_decay is None else weight_decay,
        )
        if config.name == "sgd":
            return SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0)
        return (Adam if config.name == "adam" else AdamW)(groups, lr=lr)

    def schedule(self, optimizer: TorchOptimizer, steps: int) -> LRScheduler | None:
        """Make the study's schedule over a number of steps; None for a constant rate."""
        match self.study.optimizer.schedule:
            case "cosine":
                return CosineAnnealingLR(optimizer, steps)
            case "one-cycle":
                rates = [group["lr"] for group in optimizer.param_groups]
                return OneCycleLR(optimizer, rates, total_steps=steps + 1)
            case _:
                return None

    def measure(
        self, trained: TrainingResult, evaluation: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """Add a point to the learning curve, where one is due before the next step.

        Args:
            trained: The outcome, which holds the curve.
            evaluation: Makes a context in which the network has the weights to evaluate.
        """
        if self.study.curve and trained.steps % self.study.curve == 0:
            with evaluation():
                trained.curve.append((trained.steps, self.score()))


def train_step(run: Run, task: Task, loss_of: nn.Module, step: int) -> tuple[float, float]:
    """Take one step of an ordinary loop, followed by the meta pass where MetaLR needs one.

    Returns:
        The training loss, and the time of the step in seconds, without that for making batches.
    """
    learns = run.metalr is not None and not run.metalr.streaming
    image, label = task.batch(step)
    meta = task.meta_batch(step) if learns and task.meta_batch else None
    start = time.perf_counter()
    run.network.train()
    run.optimizer.zero_grad()
    loss = loss_of(run.network(image), label)
    loss.backward()
    run.optimizer.step()
    if run.metalr is not None and meta is not None and run.metalr.due:
        run.optimizer.zero_grad()
        with meta_pass(run.network):
            loss_of(run.network(meta[0]), meta[1]).backward()
        run.metalr.adapt()
    if run.schedule:
        run.schedule.step()
    return float(loss.detach()), time.perf_counter() - start


def train_steps(training: Training, run: Run, steps: int, trained: TrainingResult) -> None:
    """Take a number of further steps; stop early where the loss is not finite any more."""
    for _ in range(steps):
        training.measure(trained, run.evaluation)
        loss, seconds = train_step(run, training.task, training.loss_of, trained.steps)
        trained.steps += 1
        trained.losses.append(loss)
        trained.seconds.append(seconds)
        training.tell(trained.steps)
        if not math.isfinite(loss):
            break  # the weights are lost; AutoLR restores the weights of such a trial itself


@dataclass
class Part:
    """A part of a training: the layers of a policy at one rate, as every method trains that overrides nothing.

    Attributes:
        training: The network and what it is trained on.
        method: The method, as the study's file describes it.
        policy: The layers that are trained.
        lr: The base learning rate, > 0, which a policy's scales multiply.
        steps: Number of steps within the budget.
    """

    training: Training
    method: Any
    policy: Policy
    lr: float
    steps: int

    def optimizer(self) -> TorchOptimizer:
        """Make the optimizer."""
        return self.training.optimizer(self.policy, self.lr)

    def schedule(self, optimizer: TorchOptimizer) -> LRScheduler | None:
        """Make the schedule of the optimizer, or None for a constant rate."""
        return self.training.schedule(optimizer, self.steps)

    def restricted(self, run: Run) -> AbstractContextManager[object]:  # noqa: ARG002 - others need it
        """Freeze what is not trained, for the length of the block."""
        if all(self.policy(self.training.layers)):
            return nullcontext()
        return freeze(self.training.network, self.training.layers, self.policy)

    def attach(self, run: Run) -> None:
        """Attach ``MetaLR`` to the optimizer, if the method learns rates."""
        options = self.method.learner_options()
        if options is not None:
            run.metalr = MetaLR(run.optimizer, **options)

    def take_steps(self, run: Run, trained: TrainingResult) -> None:
        """Take the steps."""
        train_steps(self.training, run, self.steps, trained)

    def report(self, run: Run, trained: TrainingResult) -> None:
        """Add what was learned to the outcome."""
        if run.metalr is not None:
            trained.set_profile(run.metalr.lrs, run.metalr.profile() if run.metalr.history else None)

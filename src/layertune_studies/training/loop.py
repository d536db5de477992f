"""What a trial trains on, and the steps that it takes: the loop that users write, and nothing that they could not."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from layertune import LayerMap, param_groups
from layertune.policies.policies import Policy
from layertune_studies.config.study import Study
from layertune_studies.demo_train import Run, Task, train_step

__all__ = ["Trained", "Training", "train_steps"]


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


def train_steps(training: Training, run: Run, steps: int, trained: Trained) -> None:
    """Take so many steps more, fewer where the loss is no number any longer."""
    for _ in range(steps):
        train_step(run, training.task, training.loss_of, trained.steps)
        trained.steps += 1
        trained.losses.append(run.log.losses[-1])
        training.tell(trained.steps)
        if not math.isfinite(trained.losses[-1]):
            break  # it will not come back; AutoLR puts such a trial back itself

"""Pre-training, fine-tuning and measuring, each resumed where it was interrupted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.metrics import ConfusionMatrixMetric, DiceMetric
from monai.networks import one_hot
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from layertune import MetaLR, meta_pass
from layertune_studies.data.case import Batch, Case
from layertune_studies.demo_store import Store

__all__ = ["Log", "Run", "Scores", "Task", "evaluate", "make_network", "predict", "train"]

CLASSES = 3


@dataclass
class Log:
    """What a training left behind; plain values, so that it is stored and loaded without running code.

    Attributes:
        losses: training loss of each step.
        curve: (step, Dice on the validation subjects).
        seconds: time of each step, without making batches and measuring Dice.
    """

    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What a network is trained on.

    Attributes:
        batch: training batch of a step.
        meta_batch: meta batch of a step, asked for where MetaLR wants one.
        validation: subjects that the learning curve is measured on.
    """

    batch: Callable[[int], Batch]
    meta_batch: Callable[[int], Batch] | None
    validation: Sequence[Case]


@dataclass(frozen=True)
class Scores:
    """Means over subjects and the tissue classes, each in [0, 1]."""

    dice: float
    ppv: float
    sensitivity: float


@dataclass
class Run:
    """All that one training changes.

    Attributes:
        network: what is trained.
        optimizer: of its param groups.
        schedule: of the optimizer, if any.
        metalr: attached to the optimizer, if any.
        log: what happened so far.
    """

    network: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None = None
    metalr: MetaLR | None = None
    log: Log = field(default_factory=Log)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; batches depend on the number of the step alone."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "log": vars(self.log),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``: MetaLR's own state travels in the optimizer's."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self.log = Log(**state["log"])


def make_network(seed: int) -> nn.Module:
    """MONAI's U-Net with batch normalisation: four resolutions, seven layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=CLASSES,
            channels=(16, 32, 64, 128),
            strides=(2, 2, 2),
            norm="batch",
        )


def train(
    run: Run,
    task: Task,
    *,
    steps: int,
    store: Store,
    checkpoint: str,
    checkpoint_every: int,
    validate_every: int,
    on_step: Callable[[int], None],
) -> None:
    """Train to the given number of steps, from the last checkpoint if there is one.

    Args:
        run: at its start.
        task: what it is trained on.
        steps: in all.
        store: holds the checkpoint.
        checkpoint: its name.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations.
        on_step: told the steps done.
    """
    state = store.load(checkpoint)
    if state:
        run.load(state)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    for step in range(len(run.log.losses), steps):
        if step == 0:
            run.log.curve.append((0, evaluate(run.network, task.validation).dice))
        on_step(step)
        train_step(run, task, loss_of, step)
        done = step + 1
        if done % validate_every == 0 or done == steps:
            run.log.curve.append((done, evaluate(run.network, task.validation).dice))
        if done % checkpoint_every == 0 and done < steps:
            store.save(checkpoint, run.state())


def train_step(run: Run, task: Task, loss_of: nn.Module, step: int) -> None:
    """One step of an ordinary loop, with the meta pass at its end where MetaLR asks for one."""
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
    run.log.seconds.append(time.perf_counter() - start)
    run.log.losses.append(float(loss.detach()))


@torch.no_grad()
def predict(network: nn.Module, subjects: Sequence[Case]) -> list[Tensor]:
    """The label map of each subject, (1, x, y, z)."""
    network.eval()
    return [network(subject.image[None]).argmax(1) for subject in subjects]


def evaluate(network: nn.Module, subjects: Sequence[Case]) -> Scores:
    """Dice, positive predictive value and sensitivity, the mean over subjects and tissues."""
    dice = DiceMetric(include_background=False)
    counts = ConfusionMatrixMetric(
        include_background=False, metric_name=("precision", "sensitivity"), compute_sample=True
    )
    for predicted, subject in zip(predict(network, subjects), subjects, strict=True):
        pair = one_hot(predicted[None], CLASSES), one_hot(subject.label[None], CLASSES)
        dice(*pair)
        counts(*pair)
    ppv, sensitivity = counts.aggregate()
    means = (torch.as_tensor(value).item() for value in (dice.aggregate(), ppv, sensitivity))
    return Scores(*means)

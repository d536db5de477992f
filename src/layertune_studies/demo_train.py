"""Pre-training, fine-tuning and measuring, each resumed where it was interrupted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.losses import DiceCELoss
from monai.metrics import ConfusionMatrixMetric, DiceMetric
from monai.networks import one_hot
from monai.networks.nets import UNet
from torch import Tensor, nn

from layertune_studies.data.case import Case
from layertune_studies.demo_store import Store
from layertune_studies.training.loop import Run, Task, train_step

__all__ = ["Scores", "evaluate", "make_network", "predict", "train"]

CLASSES = 3


@dataclass(frozen=True)
class Scores:
    """Means over subjects and the tissue classes, each in [0, 1]."""

    dice: float
    ppv: float
    sensitivity: float


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

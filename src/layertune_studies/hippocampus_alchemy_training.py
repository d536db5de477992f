"""Pre-training and fine-tuning in the hippocampus study of Network Alchemy."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from layertune import GammaPenalty, load_weights, map_layers
from layertune_monai.genesis.unet import GenesisUNet
from layertune_studies.data.case import Batch, Case, batch_of
from layertune_studies.demo_train import CLASSES, evaluate
from layertune_studies.hippocampus_alchemy_data import Plan, Sets, augmentation
from layertune_studies.training.genesis import deformation, restoration_loss

__all__ = [
    "Phases",
    "ends",
    "fit",
    "head_of",
    "labelled_batches",
    "make_network",
    "measured",
    "phase_grid",
    "pretrain",
    "scores",
    "segmentation_loss",
    "start",
    "supervise",
]

PRETRAIN_LR = 1e-3  # a higher one inflates the kernels, which fine-tuning then moves little
BACKGROUND = 0.2  # its weight in the cross-entropy
EARLY = 8  # an early checkpoint is taken after this part of the pre-training
TRAINING, PRETRAINING, RANKING = 0, 1, 2  # streams of batches
Weights = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Phases:
    """Which phases of Network Alchemy a fine-tuning has.

    Attributes:
        identification: it starts from the weights that a norm-only training left.
        modification: the kernels of the smallest gammas start afresh.
        weight: lambda of the penalty in the loss; 0 for no maximisation.
    """

    identification: bool = False
    modification: bool = False
    weight: float = 0.0

    @property
    def name(self) -> str:
        """For files."""
        return f"i{self.identification:d}m{self.modification:d}w{self.weight:g}"


def phase_grid(weight: float) -> list[Phases]:
    """Each phase on and off (tab. 4.1), without any first; ``weight`` is the penalty's."""
    return [Phases(bool(i), bool(m), w) for w in (0.0, weight) for i in (0, 1) for m in (0, 1)]


def make_network(plan: Plan, *, classes: int, seed: int) -> nn.Module:
    """The thesis' 3D U-Net with batch normalisation, narrowed; with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GenesisUNet(1, classes, width=plan.width)
    # Channels beside each other, which oneDNN's convolutions of few channels read faster; the numbers are the same.
    return network.to(memory_format=torch.channels_last_3d)


def start(plan: Plan, weights: Weights | None, *, seed: int) -> nn.Module:
    """A network to fine-tune: pre-trained weights, if any, under a head that is new and the same for all of a seed."""
    network = make_network(plan, classes=CLASSES, seed=seed)
    if weights is not None:
        load_weights(network, weights)
    return network


def head_of(network: nn.Module, plan: Plan) -> tuple[str, ...]:
    """The names of the parameters of the head."""
    return tuple(map_layers(network, torch.empty(2, 1, *plan.grid)).head.parameters)


def fit(
    network: nn.Module,
    batch: Callable[[int], Batch],
    *,
    steps: int,
    lr: float,
    loss_of: Loss,
    penalty: Callable[[], Tensor] | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Train what requires a gradient with Adam; the rate falls to 0 along a cosine.

    Args:
        network: to train.
        batch: of a step.
        steps: in all.
        lr: at the start.
        loss_of: the network's output and the target.
        penalty: is added to the loss.
        on_step: told the steps done.

    Returns:
        The loss of each step, without the penalty.
    """
    optimizer = Adam([parameter for parameter in network.parameters() if parameter.requires_grad], lr=lr)
    schedule = CosineAnnealingLR(optimizer, T_max=steps)
    losses = []
    network.train()
    for step in range(steps):
        image, target = batch(step)
        optimizer.zero_grad()
        loss = loss_of(network(image), target)
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        on_step(step + 1)
    return losses


def pretrain(plan: Plan, cases: Sequence[Case]) -> dict[str, Any]:
    """Learn to restore deformed volumes (Models Genesis).

    Returns:
        ``network`` at the end and ``early``, ``losses``, and ``unrestored``, the error of the deformed volumes
        themselves.
    """
    network, augment = make_network(plan, classes=1, seed=0), deformation(plan.grid)
    kept: dict[str, Any] = {"unrestored": []}

    def batch(step: int) -> Batch:
        image, target = batch_of(cases, plan.batch, key=(PRETRAINING, step), augment=augment)
        kept["unrestored"].append(mse_loss(image, target).item())
        return image, target

    def keep(done: int) -> None:
        if done == max(1, plan.pretrain_steps // EARLY):
            kept["early"] = _copy(network)

    kept["losses"] = fit(
        network, batch, steps=plan.pretrain_steps, lr=PRETRAIN_LR, loss_of=restoration_loss, on_step=keep
    )
    return {**kept, "network": _copy(network)}


def supervise(plan: Plan, sets: Sets) -> dict[str, Any]:
    """Pre-train with labels, on cases of inverted contrast; the head is dropped."""
    network = make_network(plan, classes=CLASSES, seed=0)
    batch = _batches(plan, sets.inverted, PRETRAINING, 0)
    losses = fit(network, batch, steps=plan.supervised_steps, lr=PRETRAIN_LR, loss_of=segmentation_loss())
    head = head_of(network, plan)
    weights = {name: tensor for name, tensor in _copy(network).items() if name not in head}
    return {"losses": losses, "network": weights}


def labelled_batches(plan: Plan, sets: Sets, seed: int, *, ranking: bool = False) -> Callable[[int], Batch]:
    """The batches of a fine-tuning, the same for all methods of a seed."""
    return _batches(plan, sets.train[seed], RANKING if ranking else TRAINING, seed)


def measured(
    network: nn.Module,
    batch: Callable[[int], Batch],
    validation: Sequence[Case],
    *,
    steps: int,
    lr: float,
    penalty: GammaPenalty | None = None,
) -> dict[str, Any]:
    """Fine-tune and measure.

    Returns:
        ``network``, ``losses``, ``validation`` (Dice; 0 after a training that diverged) and ``seconds``, measuring it
        included.
    """
    began = time.perf_counter()
    losses = fit(network, batch, steps=steps, lr=lr, loss_of=segmentation_loss(), penalty=penalty)
    dice = evaluate(network, validation).dice if math.isfinite(losses[-1]) else 0.0
    seconds = time.perf_counter() - began
    return {"network": _copy(network), "losses": losses, "validation": dice, "seconds": seconds}


def scores(network: nn.Module, cases: Sequence[Case]) -> dict[str, float]:
    """Dice, positive predictive value and sensitivity."""
    return asdict(evaluate(network, cases))


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first and of the last tenth."""
    tenth = max(1, len(values) // 10)
    return fmean(values[:tenth]), fmean(values[-tenth:])


def _batches(plan: Plan, cases: Sequence[Case], stream: int, seed: int) -> Callable[[int], Batch]:
    augment = augmentation()
    return lambda step: batch_of(cases, plan.batch, key=(stream, step, seed), augment=augment)


def segmentation_loss() -> Loss:
    """Dice of the foreground, over the batch, and cross-entropy in which the background counts less.

    The foreground is 7 % of a case: with all classes alike, short trainings end with background everywhere.
    """
    weight = torch.tensor([BACKGROUND, *[1.0] * (CLASSES - 1)])
    loss: Loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, weight=weight)
    return loss


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

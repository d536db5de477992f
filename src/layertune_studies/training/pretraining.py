"""Pre-training for a study: weights from a file, or from a task that is learned here, once for all trials."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from monai.transforms import ScaleIntensityRangePercentilesd
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from layertune_studies.config.study import Study
from layertune_studies.data.batches import batches
from layertune_studies.data.case import Batch, Case, batch_of
from layertune_studies.data.cases import Cases, LabelledCases, LazyCases
from layertune_studies.errors import StudyError
from layertune_studies.training.genesis import deformation, restoration_loss
from layertune_studies.training.network import make_network, pretrained_weights

__all__ = ["pretrain", "reserved_cases"]

Weights = Mapping[str, Tensor]
DIGITS = 10


def reserved_cases(study: Study) -> int:
    """How many training cases are pre-trained on, and so are not fine-tuned on."""
    return study.pretraining.cases if study.pretraining.task in ("inverted", "genesis") else 0


def pretrain(study: Study, cases: Cases, root: Path | None, tell: Callable[[int], object]) -> Weights | None:
    """The weights that all trials start from.

    They are learned with as many threads as the trials, for sums over threads depend on how many there are; torch
    keeps that number afterwards.

    Args:
        study: as its file says.
        cases: of the study; validation and test cases are not looked at.
        root: the folder of all data.
        tell: told each step.

    Returns:
        Tensors by name, or ``None`` for random weights.

    Raises:
        DataError: a file of weights is not there.
        StudyError: the task does not suit the data.
    """
    config = study.pretraining
    if config.weights is not None:
        return pretrained_weights(config.weights, root)
    if config.task is None:
        return None
    torch.set_num_threads(study.threads)
    torch.manual_seed(config.seed)
    make = {"digits": _digits, "inverted": _inverted, "genesis": _genesis}[config.task]
    network, batch_of_step, loss_of = make(study, cases)
    optimizer = AdamW(network.parameters(), lr=config.lr)
    schedule = OneCycleLR(optimizer, config.lr, total_steps=config.steps + 1)
    for step in range(config.steps):
        tell(step)
        image, label = batch_of_step(step)
        optimizer.zero_grad()
        loss_of(network(image), label).backward()
        optimizer.step()
        schedule.step()
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


PretrainingTask = tuple[nn.Module, Callable[[int], Batch], Callable[..., Tensor]]


def _digits(study: Study, cases: Cases) -> PretrainingTask:
    if cases.task != "classification" or len(cases.shape) != 3:
        raise StudyError("pretraining.task digits makes images with one label; for volumes take inverted")
    from layertune_studies.data.digits import digits

    config, (channels, *size) = study.pretraining, cases.shape
    images, labels = (part[: config.cases] for part in digits()[0].tensors)
    images = interpolate(images, size=size, mode="bilinear", align_corners=False).expand(-1, channels, -1, -1)
    generator = torch.Generator().manual_seed(config.seed)

    def batch(_: int) -> Batch:
        chosen = torch.randint(len(images), (config.batch,), generator=generator)
        return images[chosen], labels[chosen]

    return _network_of(study, cases, DIGITS, "digits have"), batch, cross_entropy


def _inverted(study: Study, cases: Cases) -> PretrainingTask:
    config = study.pretraining
    _require_volumes(study, cases)

    def inverted(number: int) -> Case:
        case = cases.train[number]
        return Case(-case.image, case.label)

    source = LazyCases(inverted, range(config.cases))
    cpu = torch.device("cpu")
    drawn = LabelledCases(source, source)
    batch, _ = batches(drawn, study.data, task=cases.task, batch=config.batch, seed=config.seed, device=cpu)
    network = make_network(study.network, classes=cases.classes, shape=cases.shape)
    loss: Callable[..., Tensor] = DiceCELoss(to_onehot_y=True, softmax=True)
    return network, batch, loss


def _genesis(study: Study, cases: Cases) -> PretrainingTask:
    config, (channels, *size) = study.pretraining, cases.shape
    _require_volumes(study, cases)
    if channels != 1:
        raise StudyError(f"pretraining.task genesis restores images of one channel, and these have {channels}")
    source = LazyCases(lambda number: cases.train[number], range(config.cases))
    scale = ScaleIntensityRangePercentilesd("image", 1, 99, 0.0, 1.0, clip=True)
    augment = deformation(study.data.patch or size, scale)

    def batch(step: int) -> Batch:
        return batch_of(source, config.batch, key=(config.seed, step), augment=augment)

    return _network_of(study, cases, 1, "a restored volume has"), batch, restoration_loss


def _require_volumes(study: Study, cases: Cases) -> None:
    config = study.pretraining
    if cases.task != "segmentation":
        raise StudyError(f"pretraining.task {config.task} is for volumes with label maps; for images take digits")
    if config.cases >= len(cases.train):
        raise StudyError(
            f"pretraining.cases is {config.cases}, and of {len(cases.train)} training cases some must remain to be "
            "fine-tuned on"
        )


def _network_of(study: Study, cases: Cases, classes: int, whose: str) -> nn.Module:
    """The study's network with another number of classes."""
    network = make_network(study.network, classes=classes, shape=cases.shape)
    with torch.no_grad():
        found = network.eval()(torch.zeros(1, *cases.shape)).shape[1]
    if found != classes:
        raise StudyError(
            f"network.name {study.network.name} gives {found} classes, and {whose} {classes}; take a network of timm "
            "or MONAI, whose number of classes can be set, or weights from a file"
        )
    return network.train()

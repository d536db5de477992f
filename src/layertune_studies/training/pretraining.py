"""Pre-training for a study: weights from a file, or from a task that is learned here, once for all trials."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from layertune import map_layers
from layertune_studies.config.pretraining import Pretraining
from layertune_studies.config.study import Study
from layertune_studies.data.batches import PRETRAINING, TRAINING, batch_maker
from layertune_studies.data.case import Batch, Case, batch_of
from layertune_studies.data.cases import Cases, LazyCases, load_cases
from layertune_studies.data.digits import COUNT, DIGITS, digits
from layertune_studies.errors import StudyError
from layertune_studies.training.genesis import deformation, restoration_loss
from layertune_studies.training.loss import make_loss
from layertune_studies.training.network import make_network, pretrained_weights

__all__ = ["pretrain", "reserved_cases"]

Weights = Mapping[str, Tensor]
PretrainingTask = tuple[nn.Module, Callable[[int], Batch], Callable[..., Tensor]]


def reserved_cases(study: Study) -> int:
    """Return how many training cases are kept for pre-training, so that nothing is fine-tuned on them."""
    config = study.pretraining
    own = config.cases if config.task in ("inverted", "genesis") and config.data is None else 0
    return max(own, study.data.reserved or 0)


def pretrain(study: Study, cases: Cases, root: Path | None, tell: Callable[[int], object]) -> Weights | None:
    """Return the weights that all trials start from.

    They are learned with as many threads as the trials, since sums over threads depend on how many there are; torch
    keeps that number afterwards.

    Args:
        study: The study, as its file says.
        cases: The cases of the study, of which the validation and test cases are not used.
        root: The folder of all data.
        tell: Progress callback, called with the number of steps done.

    Returns:
        Tensors by name, or None for random weights.

    Raises:
        DataError: A file of weights, or the other data set, is not there.
        StudyError: The task does not suit the data.
    """
    config = study.pretraining
    if config.weights is not None:
        return pretrained_weights(config.weights, root)
    if config.task is None:
        return None
    torch.set_num_threads(study.threads)
    source = cases if config.data is None else load_cases(config.data, root)
    torch.manual_seed(config.seed)
    make = {"digits": _digits, "inverted": _inverted, "genesis": _genesis, "supervised": _supervised}[config.task]
    network, batch_of_step, loss_of = make(study, source)
    optimizer, schedule = _optimizer(network, config)
    for step in range(config.steps if config.early is None else max(1, config.steps // config.early)):
        tell(step)
        image, label = batch_of_step(step)
        optimizer.zero_grad()
        loss_of(network(image), label).backward()
        optimizer.step()
        schedule.step()
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return weights if config.head else _without_head(network, weights, source.shape)


def _optimizer(network: nn.Module, config: Pretraining) -> tuple[Optimizer, LRScheduler]:
    make: Any = {"adamw": AdamW, "adam": Adam, "sgd": partial(SGD, momentum=0.9)}[config.optimizer]
    optimizer: Optimizer = make(network.parameters(), lr=config.lr)
    if config.schedule == "cosine":
        return optimizer, CosineAnnealingLR(optimizer, config.steps)
    return optimizer, OneCycleLR(optimizer, config.lr, total_steps=config.cycle or config.steps + 1)


def _digits(study: Study, cases: Cases) -> PretrainingTask:
    if cases.task != "classification" or len(cases.shape) != 3:
        raise StudyError("pretraining.task digits makes images with one label; for volumes take inverted")
    config, (channels, *size) = study.pretraining, cases.shape
    if config.cases > COUNT:
        raise StudyError(
            f"pretraining.cases is {config.cases}, and there are {COUNT} digits to pre-train on; ask for fewer"
        )
    images, labels = digits(tuple(size), config.cases)
    images = images.expand(-1, channels, -1, -1)
    generator = torch.Generator().manual_seed(config.seed)

    def batch(_: int) -> Batch:
        numbers = torch.randint(len(images), (config.batch,), generator=generator)
        return images[numbers], labels[numbers]

    return _network_of(study, cases, DIGITS, "digits have"), batch, cross_entropy


def _inverted(study: Study, cases: Cases) -> PretrainingTask:
    _require_volumes(study, cases)
    # The contrast is turned about the middle of the intensities: 0 where they are normalised, 0.5 of [0, 1].
    most = 0.0 if study.data.percentiles is None else 1.0

    def inverted(number: int) -> Case:
        case = cases.train[number]
        return Case(most - case.image, case.label)

    return _labelled(study, cases, LazyCases(inverted, range(study.pretraining.cases)))


def _supervised(study: Study, cases: Cases) -> PretrainingTask:
    return _labelled(study, cases, _some(study, cases))


def _labelled(study: Study, cases: Cases, source: LazyCases) -> PretrainingTask:
    config = study.pretraining
    batch = batch_maker(
        source, config.data or study.data, count=config.batch, key=_key(study, config.seed, TRAINING), augment=True
    )
    network = make_network(study.network, classes=cases.classes, shape=cases.shape)
    return network, batch, make_loss(study, cases)


def _genesis(study: Study, cases: Cases) -> PretrainingTask:
    config, (channels, *size) = study.pretraining, cases.shape
    _require_volumes(study, cases)
    if channels != 1:
        raise StudyError(f"pretraining.task genesis restores images of one channel, and these have {channels}")
    data = config.data or study.data
    patch = study.data.patch or study.data.resample or study.data.size or size
    augment = deformation(patch, scaled=data.percentiles is not None)
    source, key = _some(study, cases), _key(study, config.seed)

    def batch(step: int) -> Batch:
        return batch_of(source, config.batch, key=key(step), augment=augment)

    return _network_of(study, cases, 1, "a restored volume has"), batch, restoration_loss


def _key(study: Study, *own: int) -> Callable[[int], tuple[int, ...]]:
    """Return the function that gives the key of a step's batch."""
    first = own if study.seed is None else (study.seed, PRETRAINING)
    return lambda step: (*first, step)


def _some(study: Study, cases: Cases) -> LazyCases:
    """Return the cases of the task, the first ones of the training cases."""
    count = study.pretraining.cases
    if study.pretraining.data is not None and count > len(cases.train):
        raise StudyError(f"pretraining.cases is {count}, and pretraining.data has {len(cases.train)} training cases")
    return LazyCases(lambda number: cases.train[number], range(count))


def _require_volumes(study: Study, cases: Cases) -> None:
    config = study.pretraining
    if cases.task != "segmentation":
        raise StudyError(f"pretraining.task {config.task} is for volumes with label maps; for images take digits")
    if config.data is None and config.cases >= len(cases.train):
        raise StudyError(
            f"pretraining.cases is {config.cases}, and of {len(cases.train)} training cases some must remain to be "
            "fine-tuned on"
        )


def _network_of(study: Study, cases: Cases, classes: int, description: str) -> nn.Module:
    """Make the study's network with another number of classes."""
    network = make_network(study.network, classes=classes, shape=cases.shape)
    with torch.no_grad():
        outputs = network.eval()(torch.zeros(1, *cases.shape)).shape[1]
    if outputs != classes:
        raise StudyError(
            f"network.name {study.network.name} gives {outputs} classes, and {description} {classes}; take a network "
            "of timm or MONAI, whose number of classes can be set, or weights from a file"
        )
    return network.train()


def _without_head(network: nn.Module, weights: Weights, shape: tuple[int, ...]) -> Weights:
    head = map_layers(network, torch.empty(2, *shape)).head.parameters
    return {name: tensor for name, tensor in weights.items() if name not in head}

"""`layertune rank`: checkpoints ranked for a task, as a YAML file with network, task and budget asks for it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.transforms import Compose
from torch import Tensor, nn

from layertune.alchemy.ranking import Ranking, rank_checkpoints
from layertune.hosts.networks import import_factory, named_network
from layertune.layers.layer_map import map_layers
from layertune_studies.config.data import Augment, Data
from layertune_studies.config.ranking import RankStudy
from layertune_studies.config.sets import named_set
from layertune_studies.data.batches import augmentation
from layertune_studies.data.case import Batch, Case, batch_of
from layertune_studies.data.cases import load_cases
from layertune_studies.errors import StudyError
from layertune_studies.training.metrics import evaluate

__all__ = ["RankTask", "run_rank_study"]


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """The task that checkpoints are ranked for; a function of the user's own makes one.

    Attributes:
        batches: Pairs of inputs and targets, iterated over again and again, for instance a ``DataLoader``.
        loss: The loss, called with the network's output and the target.
        evaluate: Returns the validation metric of a network.
        higher_is_better: Whether a higher metric is better; False for a loss.
    """

    batches: Iterable[Batch]
    loss: Callable[[Any, Tensor], Tensor]
    evaluate: Callable[[nn.Module], float]
    higher_is_better: bool = True


def run_rank_study(study: RankStudy, checkpoints: Sequence[Path]) -> Ranking:
    """Rank checkpoints by norm-only trainings (Network Alchemy, sec. 4.4).

    Args:
        study: The network, the task and the budget, as the file says.
        checkpoints: The files of weights.

    Raises:
        LayertuneError: The network or the task cannot be made, or a checkpoint does not fit.
    """
    torch.set_num_threads(study.threads)
    torch.manual_seed(study.seed)
    task = _make_task(study)
    example = next(_endless(task.batches))[0]
    network = named_network(study.network, shape=tuple(example.shape), arguments=study.arguments).network
    head = map_layers(network, example).head.parameters if study.head else ()

    def train(model: nn.Module, steps: int) -> None:
        optimizer = _optimizer(study, [parameter for parameter in model.parameters() if parameter.requires_grad])
        model.train()
        for _, (inputs, target) in zip(range(steps), _endless(task.batches), strict=False):
            optimizer.zero_grad()
            task.loss(model(inputs), target).backward()
            optimizer.step()

    return rank_checkpoints(
        list(checkpoints),
        network,
        train,
        task.evaluate,
        budget=study.budget,
        halving=study.halving,
        keep=study.keep,
        higher_is_better=task.higher_is_better,
        full_budget=study.full_budget,
        biases=study.biases,
        head=head,
        seed=study.seed,
    )


def _make_task(study: RankStudy) -> RankTask:
    if ":" not in study.task:
        try:
            return _segmentation_task(study.task, study.seed, **study.task_arguments)
        except TypeError as error:
            raise StudyError(f"task_arguments of {study.task}: {error}") from error
    task = import_factory(study.task)(**study.task_arguments)
    if not isinstance(task, RankTask):
        raise StudyError(f"{study.task} should make a layertune_studies.ranking.RankTask, not {type(task).__name__}")
    return task


def _segmentation_task(
    name: str,
    seed: int,
    *,
    root: str | None = None,
    size: Sequence[int] = (40, 48, 40),
    shots: int = 3,
    held_out: int = 4,
    batch: int = 2,
) -> RankTask:
    # The first case and as many test cases as three times the validation cases are left out, as in the demo's split.
    split = {"counts": [1 + shots, held_out, 3 * held_out], "seed": seed}
    folder = root or os.environ.get("LAYERTUNE_DATA")
    data = Data.model_validate({**named_set(name), "size": size, "split": split})
    cases = load_cases(data, None if folder is None else Path(folder))

    def dice(model: nn.Module) -> float:
        return evaluate(model, cases.validation, classes=cases.classes, patch=None)["dice"]

    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    return RankTask(batches=_AugmentedBatches(cases.train[1:], batch), loss=loss, evaluate=dice)


class _AugmentedBatches:
    """Augmented batches, seeded by torch's global generator, so that every checkpoint sees the same ones."""

    def __init__(self, cases: Sequence[Case], count: int) -> None:
        self._cases, self._count, self._augment = cases, count, Compose(augmentation(Augment()))

    def __iter__(self) -> Iterator[Batch]:
        seed = int(torch.randint(2**31, ()))
        for step in range(100):
            yield batch_of(self._cases, self._count, key=(seed, step), augment=self._augment)


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise StudyError("the task has no batch; its batches are iterated over again and again, so use a list")


def _optimizer(study: RankStudy, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if study.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=study.lr, momentum=0.9)
    kind = torch.optim.AdamW if study.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=study.lr)

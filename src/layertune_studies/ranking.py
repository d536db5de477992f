"""A ranking of checkpoints as a YAML file says it: network, task and budget; checked before anything runs."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layertune.alchemy.ranking import Ranking, rank_checkpoints
from layertune.hosts.networks import import_factory, named_network
from layertune.layers.layer_map import map_layers
from layertune_studies.config.ranking import RankStudy
from layertune_studies.data.brains import augmentation, make_cohort
from layertune_studies.data.case import Case, batch_of
from layertune_studies.errors import StudyError

__all__ = ["RankTask", "run_rank_study"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """What checkpoints are ranked for; a function of the user's own makes one.

    Attributes:
        batches: of inputs and targets, gone over again and again, as a ``DataLoader``.
        loss: of the network's output and the target.
        evaluate: the validation metric of the network.
        higher_is_better: ``False`` for a loss.
    """

    batches: Iterable[Batch]
    loss: Callable[[Any, Tensor], Tensor]
    evaluate: Callable[[nn.Module], float]
    higher_is_better: bool = True


def run_rank_study(study: RankStudy, checkpoints: Sequence[Path]) -> Ranking:
    """Rank checkpoints as a study says.

    Raises:
        LayertuneError: the network or the task cannot be made, or a checkpoint does not fit.
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
            return _demo_task(study.task, study.seed, **study.task_arguments)
        except TypeError as error:
            raise StudyError(f"task_arguments of {study.task}: {error}") from error
    task = import_factory(study.task)(**study.task_arguments)
    if not isinstance(task, RankTask):
        raise StudyError(f"{study.task} should make a layertune_studies.ranking.RankTask, not {type(task).__name__}")
    return task


class _DemoBatches:
    """Augmented batches, drawn by the global generator's state, so that every checkpoint sees the same."""

    def __init__(self, subjects: Sequence[Case], batch: int) -> None:
        self._subjects, self._batch, self._augment = subjects, batch, augmentation()

    def __iter__(self) -> Iterator[Batch]:
        seed = int(torch.randint(2**31, ()))
        for step in range(100):
            yield batch_of(self._subjects, self._batch, key=(seed, step), augment=self._augment)


def _demo_task(
    data: str,
    seed: int,
    *,
    root: str | None = None,
    size: Sequence[int] = (40, 48, 40),
    shots: int = 3,
    held_out: int = 4,
    batch: int = 2,
) -> RankTask:
    from monai.losses import DiceCELoss

    from layertune_studies.demo_train import evaluate

    where = root or os.environ.get("LAYERTUNE_DATA")
    cohort = make_cohort(
        data,
        root=None if where is None else Path(where),
        size=(size[0], size[1], size[2]),
        source=1,
        shots=shots,
        seeds=1,
        held_out=held_out,
        seed=seed,
    )

    @torch.no_grad()
    def dice(model: nn.Module) -> float:
        return evaluate(model, cohort.validation).dice

    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    return RankTask(batches=_DemoBatches(cohort.train[0], batch), loss=loss, evaluate=dice)


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise StudyError("the task has no batch; a task's batches are gone over again and again")


def _optimizer(study: RankStudy, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if study.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=study.lr, momentum=0.9)
    kind = torch.optim.AdamW if study.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=study.lr)

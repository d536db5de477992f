"""The demo's pieces of work: pre-training once, then each setting of each method for each seed."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from layertune import LayerMap, LRProfile, MetaLR, freeze, map_layers, param_groups
from layertune_studies.data.brains import Cohort, augmentation
from layertune_studies.data.case import Batch, batch_of
from layertune_studies.demo_methods import Candidate, Method
from layertune_studies.demo_options import DemoOptions
from layertune_studies.demo_store import Store
from layertune_studies.demo_train import Scores, evaluate, make_network, predict, train
from layertune_studies.training.loop import Log, Run, Task

__all__ = ["Outcome", "Piece", "Workshop"]

PRETRAIN_LR = 5e-3
MOMENTUM = 0.9
TRAINING, META, PRETRAINING = 0, 1, 2  # streams of batches


@dataclass(frozen=True)
class Piece:
    """One finished training.

    Attributes:
        network: state dict.
        log: losses, validation curve, seconds.
        rates: fields of the learned ``LRProfile``, if any.
    """

    network: dict[str, Tensor]
    log: Log
    rates: dict[str, Any] | None = None

    @property
    def validation(self) -> float:
        """Dice on the validation subjects at the end; a training that diverged counts as 0."""
        return self.log.curve[-1][1] if math.isfinite(self.log.losses[-1]) else 0.0

    @property
    def profile(self) -> LRProfile | None:
        """The learned rates, if any."""
        return LRProfile(**self.rates) if self.rates else None


@dataclass(frozen=True)
class Outcome:
    """A network on the test subjects.

    Attributes:
        scores: on all of them.
        example: label map of the first, (1, x, y, z).
    """

    scores: Scores
    example: Tensor


class Workshop:
    """Makes each piece of work, or loads it where it is finished.

    Args:
        options: of the run.
        store: where pieces are kept.
        cohort: all cases.
        on_step: told (name of the piece, steps done in it).
    """

    def __init__(self, options: DemoOptions, store: Store, cohort: Cohort, on_step: Callable[[str, int], None]) -> None:
        self.options = options
        self.store = store
        self.cohort = cohort
        self.on_step = on_step
        self.layers: LayerMap = map_layers(make_network(0), torch.empty(2, 1, *options.size))
        # All methods of a seed see the same batches, so they are made once.
        self._batch = lru_cache(maxsize=2 * options.steps)(self._make_batch)

    def pretrained(self) -> Piece:
        """The network trained on the source contrast."""
        network, steps = make_network(self.options.seed), self.options.pretrain_steps
        optimizer = AdamW(network.parameters(), lr=PRETRAIN_LR)
        run = Run(network, optimizer, OneCycleLR(optimizer, PRETRAIN_LR, total_steps=steps))
        source = self.cohort.source
        task = Task(
            batch=lambda step: batch_of(
                source, self.options.batch, key=(self.options.seed, PRETRAINING, step), augment=self._augment
            ),
            meta_batch=None,
            validation=source[: self.options.held_out],
        )
        return self._trained("pretraining", run, task, steps)

    def tuned(self, start: Piece, method: Method, candidate: Candidate, *, lr: float, seed: int) -> Piece:
        """The pre-trained network, fine-tuned in one way on the labelled cases of one seed."""
        network = make_network(0)
        network.load_state_dict(start.network)
        if candidate.freezes:
            freeze(network, self.layers, candidate.policy)
        groups = param_groups(network, self.layers, lr=lr, policy=candidate.policy)
        run = Run(network, SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True))
        if method.meta:
            streaming = method.meta == "streaming"
            run.metalr = MetaLR(run.optimizer, hyper_lr=method.hyper_lr, rule=method.rule, streaming=streaming)
        task = Task(
            batch=lambda step: self._batch(seed, TRAINING, step),
            meta_batch=lambda step: self._batch(seed, META, step),
            validation=self.cohort.validation,
        )
        return self._trained(f"{candidate.name}-seed{seed}", run, task, self.options.steps)

    def tested(self, name: str, piece: Piece) -> Outcome:
        """A trained network on the test subjects; ``name`` tells apart what is kept."""
        held = self.store.load(f"{name}-test")
        if held is None:
            network = make_network(0)
            network.load_state_dict(piece.network)
            example = predict(network, self.cohort.test[:1])[0].to(torch.uint8)
            held = {"scores": asdict(evaluate(network, self.cohort.test)), "example": example}
            self.store.save(f"{name}-test", held)
        return Outcome(Scores(**held["scores"]), held["example"])

    def _trained(self, name: str, run: Run, task: Task, steps: int) -> Piece:
        held = self.store.load(name)
        if held is None:
            train(
                run,
                task,
                steps=steps,
                store=self.store,
                checkpoint=f"{name}.checkpoint",
                checkpoint_every=self.options.checkpoint_every,
                validate_every=self.options.validate_every,
                on_step=lambda done: self.on_step(name, done),
            )
            rates = asdict(run.metalr.profile()) if run.metalr else None
            held = {"network": run.network.state_dict(), "log": vars(run.log), "rates": rates}
            self.store.save(name, held)
        self.store.forget(f"{name}.checkpoint")
        self.on_step(name, steps)
        return Piece(held["network"], Log(**held["log"]), held["rates"])

    def _make_batch(self, seed: int, stream: int, step: int) -> Batch:
        augment = self._augment if stream == TRAINING else None
        key = (self.options.seed, stream, step, seed)
        return batch_of(self.cohort.train[seed], self.options.batch, key=key, augment=augment)

    @property
    def _augment(self) -> Any:
        return augmentation()

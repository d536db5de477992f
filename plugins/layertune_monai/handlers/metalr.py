"""MetaLRHandler: learned rates in MONAI's engines."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer

from layertune import OptimizerError
from layertune.hosts.alchemy_session import AlchemyPhases
from layertune.hosts.endless_data import Keep
from layertune.hosts.meta_learner import LearnerHolder, MetaLearner
from layertune.hosts.module_layers import Layers
from layertune.hosts.report import write_report
from layertune.metalr.settings import MetaLROptions
from layertune_monai.handlers.engine import attach_once, check_engine, example_inputs, network_of, seed_and_share
from layertune_monai.handlers.meta_loss import MetaLoss, backward_of_meta_batch, engine_loss
from layertune_monai.handlers.report import publish_lrs
from layertune_monai.handlers.transform_state import kept_transforms, random_transforms

__all__ = ["MetaLRHandler"]


class MetaLRHandler(LearnerHolder):
    """Learn one learning rate per layer while an engine trains; see ``layertune.MetaLR`` for the method.

    The engine, its optimizer and its schedulers stay as they are: the handler attaches to the optimizer when the first
    iteration starts, and stays attached, so that a later ``run`` goes on. After a step that is due, a meta batch goes
    through the engine's own ``prepare_batch``, ``inferer``, network and ``loss_function``, in its precision. Random
    numbers, those of MONAI's transforms included, running statistics and the training gradients are then as before,
    and no event is fired.

    What was learned is saved with the optimizer's state, and the position in the meta batches with the handler:
    ``CheckpointSaver(save_dict={"network": ..., "optimizer": ..., "metalr": handler, "trainer": ...})``, and
    ``CheckpointLoader`` with the same names, resume exactly. At the end of each epoch the rates are in
    ``engine.state.metrics`` as ``lr/<layer>``, where ``StatsHandler``, ``TensorBoardStatsHandler`` and
    ``MLFlowHandler`` find them.

    Args:
        optimizer: The engine's optimizer; its param groups stay as they are.
        meta_loader: The loader of meta batches, which must look like training batches. Default: the training data in
            another order.
        layers: The layers of the network or of a network inside it, or a function from the network to them. Default:
            the layers that the param groups name, or else those that a trace with the first batch finds.
        network: The network that the optimizer trains. Default: ``engine.network``.
        meta_loss: A function from the engine and a batch to the loss, for engines that compute it in another way than
            ``SupervisedTrainer``.
        after: An ``AlchemyHandler`` of the same engine, or another object with ``maximises``: rates are learned once
            its maximisation begins.
        output_dir: The folder for ``learned_rates.json`` (an ``LRProfile``) and ``learned_rates.png``, written when the
            run ends. Default: none is written.
        **settings: ``hyper_lr``, ``rule``, ``min_lr``, ``max_lr``, ``max_change``, ``every`` and ``streaming`` of
            ``layertune.MetaLR``, with the defaults of that class.

    Attributes:
        settings: The complete settings, a ``MetaLRSettings``.
        metalr: The attached ``MetaLR``, from the first iteration until ``detach()``.
        lrs: The learning rate of each layer, now or when the handler was detached; empty before the first iteration.
        profile: The rates over time, up to now or until the handler was detached; ``None`` before any was learned.

    Raises:
        LayertuneError: At once, for a setting out of range. In ``attach``, for an engine that has begun. When the run
            starts, for an engine that does not fit. In the first iteration, for layers, an optimizer or a meta batch
            that cannot serve.

    Example:
        >>> from torch.optim import SGD
        >>> handler = MetaLRHandler(SGD(nn.Linear(4, 2).parameters(), lr=0.1), hyper_lr=0.1, streaming=True)
        >>> handler.lrs
        {}
    """

    def __init__(
        self,
        optimizer: Optimizer,
        meta_loader: Iterable[Any] | None = None,
        *,
        layers: Layers | None = None,
        network: nn.Module | None = None,
        meta_loss: MetaLoss | None = None,
        after: AlchemyPhases | None = None,
        output_dir: str | Path | None = None,
        **settings: Unpack[MetaLROptions],
    ) -> None:
        self._learner = MetaLearner(meta_loader, layers, **settings)
        self.optimizer, self.network = optimizer, network
        self.meta_loss, self.after, self.output_dir = meta_loss, after, output_dir

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: The engine has begun.
        """
        events = {
            Events.STARTED: self._check,
            Events.ITERATION_STARTED: self._begin,
            Events.ITERATION_COMPLETED: self._end_iteration,
            Events.EPOCH_COMPLETED: self._publish,
            Events.COMPLETED: self._finish,
        }
        attach_once(engine, self, events)

    def detach(self) -> None:
        """Leave the optimizer as it was before: no hooks, no keys, the schedule's learning rates."""
        self._learner.detach()

    def _check(self, engine: Any) -> None:
        """Check the engine when the run starts: while handlers are attached, ``SupervisedTrainer`` is not complete."""
        if not self.settings.streaming and self.meta_loss is None:
            check_engine(engine)
        if getattr(engine, "optimizer", self.optimizer) is not self.optimizer:
            raise OptimizerError(
                f"MetaLRHandler was given another optimizer than that of the {type(engine).__name__}, so it would "
                "never see a step; give it engine.optimizer"
            )

    def _begin(self, engine: Any) -> None:
        """Attach in the first iteration: everything is on its device, and a batch is at hand."""
        if self.metalr is not None or (self.after is not None and not self.after.maximises):
            return
        network = network_of(engine, self)

        def step(batch: Any, _: int) -> Any:
            return backward_of_meta_batch(engine, self.meta_loss or engine_loss, batch)

        self._learner.attach(self.optimizer, network, lambda: example_inputs(engine, network), step=step)
        try:
            loader = getattr(engine, "data_loader", None)
            self._learner.open_batches(loader, *seed_and_share(), keep=_keep_transforms)
        except BaseException:  # an interrupt too: no hook stays on the optimizer
            self._learner.forget()
            raise

    def _end_iteration(self, engine: Any) -> None:
        # In the last iteration of an epoch, so that handlers of the epoch's end find the rates, whatever their order.
        if engine.state.epoch_length and engine.state.iteration % engine.state.epoch_length == 0:
            self._publish(engine)

    def _publish(self, engine: Any) -> None:
        publish_lrs(engine, self.lrs)

    def _finish(self, engine: Any) -> None:
        profile = self.profile
        if self.output_dir is not None and profile is not None and not engine.state.rank:
            write_report(profile, self.output_dir)


def _keep_transforms(loader: Any) -> Keep:
    """Return what sets and restores the random state of a loader's transforms, which have their own generators."""
    return partial(kept_transforms, random_transforms(getattr(loader, "dataset", None)))

"""MetaLRHandler: learned rates in MONAI's engines."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from layertune import LayerMap, LRProfile, MetaLR, OptimizerError, map_layers, meta_pass
from layertune.hosts.endless_data import over_same_data
from layertune.hosts.meta_batches import MetaBatches
from layertune.hosts.report import write_report
from layertune.metalr.meta_pass import kept_gradients
from layertune.metalr.settings import MetaLRSettings
from layertune_monai.handlers.engine import check_engine, check_not_begun, example_inputs, network_of, seed_and_share
from layertune_monai.handlers.meta_loss import MetaLoss, backward_of_meta_batch, engine_loss
from layertune_monai.handlers.report import publish_lrs
from layertune_monai.handlers.transform_state import kept_transforms, random_transforms

if TYPE_CHECKING:
    from layertune_monai.handlers.alchemy import AlchemyHandler

__all__ = ["MetaLRHandler"]

Layers = LayerMap | Callable[[nn.Module], LayerMap]


class MetaLRHandler:
    """Learn one learning rate per layer while an engine trains; see ``layertune.MetaLR`` for the method.

    The engine, its optimizer and its schedulers stay as they are: the handler attaches to the optimizer when the first
    iteration starts, and stays, so that a later ``run`` goes on. After a step that is due, a meta batch goes through
    the engine's own ``prepare_batch``, ``inferer``, network and ``loss_function``, in its precision, and leaves nothing
    but the learned rates and the corrected step: random numbers, those of MONAI's transforms too, running statistics
    and the training gradients are as before, and no event is fired.

    What was learned is saved with the optimizer's state and the place in the meta batches with the handler's:
    ``CheckpointSaver(save_dict={"network": ..., "optimizer": ..., "metalr": handler, "trainer": ...})``, and
    ``CheckpointLoader`` with the same names, resume exactly. At the end of each epoch the rates are in
    ``engine.state.metrics`` as ``lr/<layer>``, where ``StatsHandler``, ``TensorBoardStatsHandler`` and
    ``MLFlowHandler`` find them.

    Args:
        optimizer: the engine's; its param groups stay as they are.
        meta_loader: where meta batches come from, again and again; by default the training data in an order of its
            own. Batches look like training batches.
        hyper_lr: eta, the step size of the learning rates; 0 changes nothing, bit for bit. By default what suits the
            rule; the additive one has no default.
        rule: ``"joint"``, ``"cosine"``, ``"proportional"`` or ``"additive"`` (the paper's eq. 3).
        every: learn at each k-th optimizer step; a step costs 1 + 1/k passes.
        streaming: take the next training batch as the meta batch, at no extra pass.
        min_lr: floor of the learned rates.
        max_lr: ceiling, if any.
        max_change: largest factor, up or down, of one adaptation.
        layers: the layers of the network, or a function from the network to them. By default the layers that the
            param groups name, or else those traced with the shape of the first batch.
        network: the one that the optimizer trains; ``engine.network`` by default.
        meta_loss: a function from the engine and a batch to the loss, for engines that are made in another way than
            ``SupervisedTrainer``.
        after: an ``AlchemyHandler`` of the same engine: rates are learned once its maximisation begins.
        output_dir: folder for ``learned_rates.png`` and ``learned_rates.json`` (an ``LRProfile``), written when the
            run ends.

    Attributes:
        metalr: what is attached, from the first iteration on.

    Raises:
        LayertuneError: at once for settings out of range; in ``attach`` for an engine that has begun; when the run
            starts for an engine that does not fit; in the first iteration for layers, an optimizer or a meta batch that
            will not do.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> handler = MetaLRHandler(torch.optim.SGD([weight], lr=0.1), hyper_lr=0.1, streaming=True)
        >>> handler.lrs
        {}
    """

    def __init__(
        self,
        optimizer: Optimizer,
        meta_loader: Iterable[Any] | None = None,
        *,
        hyper_lr: float | None = None,
        rule: str = "joint",
        every: int = 1,
        streaming: bool = False,
        min_lr: float = 1e-6,
        max_lr: float | None = None,
        max_change: float = 2.0,
        layers: Layers | None = None,
        network: nn.Module | None = None,
        meta_loss: MetaLoss | None = None,
        after: "AlchemyHandler | None" = None,
        output_dir: str | Path | None = None,
    ) -> None:
        self.settings = MetaLRSettings.given(
            hyper_lr=hyper_lr,
            rule=rule,
            every=every,
            streaming=streaming,
            min_lr=min_lr,
            max_lr=max_lr,
            max_change=max_change,
        )
        self.optimizer = optimizer
        self.meta_loader = meta_loader
        if streaming and meta_loader is not None:
            warnings.warn("meta_loader has no effect with streaming=True: the next batch is used", stacklevel=2)
        self.layers = layers
        self.network = network
        self.meta_loss = meta_loss
        self.after = after
        self.output_dir = output_dir
        self.metalr: MetaLR | None = None
        self._hook: RemovableHandle | None = None
        self._batches: MetaBatches | None = None
        self._position: dict[str, int] | None = None

    @property
    def lrs(self) -> dict[str, float]:
        """The learning rate of each layer now; empty before the first iteration."""
        return self.metalr.lrs if self.metalr else {}

    @property
    def profile(self) -> LRProfile | None:
        """What was learned over time; ``None`` before anything was."""
        return self.metalr.profile() if self.metalr and self.metalr.history else None

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: the engine has begun.
        """
        check_not_begun(engine, self)
        events = {
            Events.STARTED: self._check,
            Events.ITERATION_STARTED: self._begin,
            Events.ITERATION_COMPLETED: self._end_iteration,
            Events.EPOCH_COMPLETED: self._publish,
            Events.COMPLETED: self._finish,
        }
        for event, handler in events.items():
            if not engine.has_event_handler(handler, event):
                engine.add_event_handler(event, handler)

    def state_dict(self) -> dict[str, Any]:
        """The place in the meta batches; what was learned is saved with the optimizer."""
        position = self._batches.position if self._batches else self._position
        return {} if position is None else {"meta_batches": position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place that was saved."""
        self._position = state_dict.get("meta_batches")
        self._go_to_position()

    def detach(self) -> None:
        """Leave the optimizer as it was: no hooks, no keys, the schedule's learning rates."""
        if self._hook is not None:
            self._hook.remove()
        if self.metalr is not None:
            self.metalr.detach()
        self.metalr, self._hook = None, None

    def _check(self, engine: Any) -> None:
        """When the run starts: while handlers are attached, a ``SupervisedTrainer`` is not complete yet."""
        if not self.settings.streaming and self.meta_loss is None:
            check_engine(engine)
        if getattr(engine, "optimizer", self.optimizer) is not self.optimizer:
            raise OptimizerError(
                f"MetaLRHandler was given another optimizer than that of the {type(engine).__name__}, whose steps it "
                "would never see; give it engine.optimizer"
            )

    def _begin(self, engine: Any) -> None:
        """In the first iteration, when everything is where it trains, and a batch is at hand."""
        if self.metalr is not None or (self.after is not None and not self.after.maximises):
            return
        network = network_of(engine, self)
        metalr = MetaLR(self.optimizer, settings=self.settings, layers=self._layers_for(engine, network))
        if not metalr.streaming:
            try:
                self._batches = self._find_batches(engine)
            except BaseException:  # an interrupt too: no hook stays on the optimizer
                metalr.detach()
                raise
            self._go_to_position()
        self.metalr = metalr
        # After MetaLR's own, before anything that schedules or averages.
        self._hook = self.optimizer.register_step_post_hook(lambda *_: self._adapt(engine))

    def _layers_for(self, engine: Any, network: nn.Module) -> Any:
        """``None`` where the param groups say it."""
        if self.layers is None and any("layer" in group for group in self.optimizer.param_groups):
            return None
        if self.layers is None:
            return map_layers(network, *example_inputs(engine, network)).parameters_of(network)
        layers = self.layers if isinstance(self.layers, LayerMap) else self.layers(network)
        return layers.parameters_of(network)

    def _find_batches(self, engine: Any) -> MetaBatches:
        seed, share = seed_and_share()
        loader: Any = self.meta_loader
        if loader is None:
            loader = over_same_data(engine.data_loader, seed, share)
        transforms = random_transforms(getattr(loader, "dataset", None))
        return MetaBatches(loader, seed, share, keep=partial(kept_transforms, transforms))

    def _go_to_position(self) -> None:
        if self._batches is not None and self._position is not None:
            self._batches.go_to(self._position)
            self._position = None

    def _adapt(self, engine: Any) -> None:
        """The meta pass, right after the optimizer's step."""
        if self.metalr is None or self._batches is None or not self.metalr.due:
            return
        network = network_of(engine, self)
        views = bool(getattr(network, "gradient_as_bucket_view", False))
        with kept_gradients(network, shared=views):
            batch = next(self._batches)
            with meta_pass(network), torch.enable_grad():
                scale = backward_of_meta_batch(engine, self.meta_loss or engine_loss, batch)
            self.metalr.adapt(scale)

    def _end_iteration(self, engine: Any) -> None:
        # The last of an epoch, so that the rates are there whichever handler's turn comes first at the epoch's end.
        if engine.state.epoch_length and engine.state.iteration % engine.state.epoch_length == 0:
            self._publish(engine)

    def _publish(self, engine: Any) -> None:
        publish_lrs(engine, self.lrs)

    def _finish(self, engine: Any) -> None:
        profile = self.profile
        if self.output_dir is not None and profile is not None and not engine.state.rank:
            write_report(profile, self.output_dir)

"""MetaLR in a host's run: attach it, draw meta batches, adapt after steps, and keep what was learned."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from layertune.hosts.endless_data import Keep, Share, over_same_data
from layertune.hosts.meta_batches import MetaBatches
from layertune.hosts.module_layers import Layers, find_layers
from layertune.metalr.meta_pass import kept_gradients, meta_pass
from layertune.metalr.metalr import MetaLR
from layertune.metalr.settings import MetaLROptions, MetaLRSettings
from layertune.rates.profile import LRProfile

__all__ = ["LearnerHolder", "MetaLearner", "MetaStep"]

MetaStep = Callable[[Any, int], float | Tensor]
"""A host's forward and backward pass of a meta batch, called as ``step(batch, number)``; ``number`` counts meta batches
from 0. It returns the factor by which the loss was scaled for the backward pass, 1 without a ``GradScaler``."""


class MetaLearner:
    """Learn one learning rate per layer on a host's own optimizer, over one run or several.

    A host makes the learner where it reads its user's settings, and then calls:

    - ``attach`` when the optimizer exists and the layers can be determined;
    - ``open_batches`` when the training data exists;
    - ``detach`` when the run is over or has failed.

    After each step of the optimizer that is due, the learner draws a meta batch and gives it to the host's
    ``MetaStep``. Random numbers, running statistics and training gradients are then as before.

    Args:
        meta_loader: The loader of meta batches that the user gave, or ``None``. It has no effect with
            ``streaming=True``; then the user gets a warning.
        layers: The layers that the user gave, or ``None``.
        **settings: The settings that the user gave; ``None`` means not given.

    Attributes:
        settings: The complete settings.
        metalr: The ``MetaLR`` that is attached to the optimizer, or ``None`` while none is.

    Raises:
        OptimizerError: A setting is unknown or out of range.
    """

    def __init__(
        self, meta_loader: Iterable[Any] | None, layers: Layers | None, **settings: Unpack[MetaLROptions]
    ) -> None:
        self.settings = MetaLRSettings.given(**settings)
        if self.settings.streaming and meta_loader is not None:
            warnings.warn("meta_loader has no effect with streaming=True: the next batch is used", stacklevel=3)
        self.meta_loader, self.layers = meta_loader, layers
        self.metalr: MetaLR | None = None
        self._hook: RemovableHandle | None = None
        self._batches: MetaBatches | None = None
        self._depths: dict[str, int] = {}
        self._position: dict[str, int] | None = None
        self._lrs: dict[str, float] = {}
        self._profile: LRProfile | None = None
        self._learned: list[dict[str, Any]] = []

    @property
    def needs_loader(self) -> bool:
        """Whether meta batches are drawn, and the user gave no loader for them."""
        return not self.settings.streaming and self.meta_loader is None

    @property
    def lrs(self) -> dict[str, float]:
        """The learning rate of each layer, now or when the learner was last detached; empty before."""
        return self.metalr.lrs if self.metalr else dict(self._lrs)

    @property
    def profile(self) -> LRProfile | None:
        """The rates over time, up to now or until the learner was last detached; ``None`` before any was learned."""
        if self.metalr is None:
            return self._profile
        if not self.metalr.history:
            return None
        profile = self.metalr.profile()
        return (
            replace(profile, depths=tuple(self._depths[name] for name in profile.layers)) if self._depths else profile
        )

    def attach(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        example_inputs: Callable[[], tuple[Any, ...]],
        *,
        step: MetaStep,
        wrapped: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Attach MetaLR to an optimizer.

        The layers are those that the user gave, or those that the optimizer's param groups name, or those that a trace
        finds.

        Args:
            optimizer: The host's optimizer.
            module: The module that the optimizer trains.
            example_inputs: A function that returns the arguments of the module's forward, called only for a trace.
            step: The host's pass of a meta batch.
            wrapped: A function that returns the module as it runs, wrapped by DDP for example. Default: ``module``.

        Raises:
            ModelError: No layers can be determined.
            OptimizerError: MetaLR cannot attach to this optimizer.
        """
        self.forget()
        layers = self._parameters(optimizer, module, example_inputs)
        self.metalr = MetaLR(optimizer, settings=self.settings, layers=layers)

        def adapt(*_: Any) -> None:
            self._adapt(module if wrapped is None else wrapped(), step)

        # After MetaLR's own hook; schedulers and weight averaging come later in a host's loop.
        self._hook = optimizer.register_step_post_hook(adapt)

    def open_batches(
        self,
        training_loader: Any,
        seed: int,
        share: Share,
        *,
        loader: Any = None,
        keep: Callable[[Any], Keep] = lambda _: nullcontext,
    ) -> None:
        """Open the stream of meta batches, at the position that was loaded; ``streaming=True`` needs none.

        Args:
            training_loader: The loader of the training batches; the default source of meta batches, in another order.
            seed: The seed of order and augmentation, the same in all processes.
            share: Which of several processes this is.
            loader: The host's own loader of meta batches, used if the user gave none.
            keep: A function from the chosen loader to what sets and restores random state of its transforms.

        Raises:
            MetaBatchError: The loader cannot serve.
        """
        if not self.settings.streaming:
            chosen: Any = self.meta_loader if self.meta_loader is not None else loader
            if chosen is None:
                chosen = over_same_data(training_loader, seed, share)
            self._batches = MetaBatches(chosen, seed, share, keep=keep(chosen))
        self._go_to_position()

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the meta batches; what was learned is saved with the optimizer's state."""
        position = self._batches.position if self._batches else self._position
        return {} if position is None else {"meta_batches": position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position: at once, or when ``open_batches`` is called."""
        self._position = state.get("meta_batches")
        if self._batches is not None:
            self._go_to_position()

    def detach(self) -> None:
        """Leave the optimizer as it was before; rates, profile and position stay readable."""
        if self.metalr is None:
            return
        optimizer = self.metalr.optimizer
        try:
            self._lrs, self._profile = self.lrs, self.profile
            self._position = self.state_dict().get("meta_batches")
            saved = optimizer.state_dict()["param_groups"]
        finally:
            if self._hook is not None:
                self._hook.remove()
            self.metalr.detach()
            self.metalr = self._hook = self._batches = None
        self._learned = _entries_missing_in(optimizer.param_groups, saved)

    def forget(self) -> None:
        """Detach, and keep nothing for a checkpoint: another run begins."""
        self.detach()
        self._learned = []

    def complete(self, groups: Sequence[dict[str, Any]]) -> None:
        """Add what was learned to the param groups of a checkpoint that is saved after ``detach``.

        Args:
            groups: The saved param groups of the optimizer. An attached MetaLR adds to them by itself.
        """
        if self._learned:
            for group, learned in zip(groups, self._learned, strict=True):
                group.update(learned)

    def _parameters(
        self, optimizer: Optimizer, module: nn.Module, example_inputs: Callable[[], tuple[Any, ...]]
    ) -> Any:
        """Return the parameters of each layer, or ``None`` where the param groups name their layers."""
        self._depths = {}
        if self.layers is None and any("layer" in group for group in optimizer.param_groups):
            return None
        network, layers = find_layers(module, self.layers, example_inputs)
        self._depths = {layer.name: layer.depth for layer in layers}
        return layers.parameters_of(network)

    def _go_to_position(self) -> None:
        if self._batches is not None and self._position is not None:
            self._batches.go_to(self._position)
        self._position = None

    def _adapt(self, module: nn.Module, step: MetaStep) -> None:
        if self.metalr is None or self._batches is None or not self.metalr.due:
            return
        views = bool(getattr(module, "gradient_as_bucket_view", False))
        with kept_gradients(module, shared=views):
            with meta_pass(module), torch.enable_grad():
                number = self._batches.drawn
                scale = step(next(self._batches), number)
            self.metalr.adapt(scale)

    def __getstate__(self) -> dict[str, Any]:
        """Hand another process the settings, and not what is attached in this one."""
        return {**vars(self), "metalr": None, "_hook": None, "_batches": None}


class LearnerHolder:
    """Give a host's class the public attributes of the ``MetaLearner`` that it holds."""

    _learner: MetaLearner

    @property
    def settings(self) -> MetaLRSettings:
        """The complete settings of MetaLR."""
        return self._learner.settings

    @property
    def metalr(self) -> MetaLR | None:
        """The attached ``MetaLR``, or ``None``."""
        return self._learner.metalr

    @property
    def lrs(self) -> dict[str, float]:
        """The learning rate of each layer, now or when the run ended; empty before."""
        return self._learner.lrs

    @property
    def profile(self) -> LRProfile | None:
        """The rates over time, up to now or to the end of the run; ``None`` before any was learned."""
        return self._learner.profile

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the meta batches; what was learned is saved with the optimizer."""
        return self._learner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved position."""
        self._learner.load_state_dict(state_dict)


def _entries_missing_in(groups: list[dict[str, Any]], saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of saved param groups that the groups do not have, on the CPU."""
    missing = [
        {key: value for key, value in of.items() if key not in group} for of, group in zip(saved, groups, strict=True)
    ]
    on_cpu: list[dict[str, Any]] = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), missing)
    return on_cpu

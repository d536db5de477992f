"""Attach to an optimizer and multiply its learning rates for the length of each step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from layertune.errors import OptimizerError
from layertune.rates.stand_in import StandIn

__all__ = ["LRMultiplier", "group_layer_names", "require_optimizer", "require_single_multiplier"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class LRMultiplier(ABC):
    """Multiply an optimizer's learning rates for the length of each step, by hooks on its ``step``.

    Each step is made by a stand-in with learning rates of its own, so the optimizer's ``lr`` always is that of the
    host's schedule: during a step, after a step that raised, and in every saved state.

    Args:
        optimizer: The optimizer to attach to. Only one object at a time may multiply its learning rates.

    Raises:
        OptimizerError: The argument is no optimizer, or another object multiplies its learning rates already.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        require_optimizer(optimizer)
        require_single_multiplier(optimizer)
        self.optimizer = optimizer
        self._stand_in: StandIn | None = None
        self._hooks: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @abstractmethod
    def _prepare_step(self, stand_in: StandIn) -> None:
        """Set the stand-in's learning rates. The gradients of the step are there when this is called."""

    def _finish_step(self) -> None:  # noqa: B027 - most have nothing to note
        """Take note of a step that was made. A step that raised is not noted."""

    def detach(self) -> None:
        """Remove the hooks from the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        stand_in = self._stand_in = StandIn(optimizer, self)

        def ready() -> None:
            if self._hooks:  # not detached by the closure
                self._prepare_step(stand_in)

        args, kwargs = call_before_update(ready, args, kwargs)
        return (stand_in.optimizer, *args[1:]), kwargs

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del optimizer, args, kwargs
        if self._stand_in is not None:  # None if this was attached while the step ran
            stand_in, self._stand_in = self._stand_in, None
            stand_in.hand_back()
            self._finish_step()


def group_layer_names(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Return the layer of each param group: its ``"layer"``, else its ``"name"``, else ``"group <number>"``."""
    return [str(group.get("layer", group.get("name", f"group {number}"))) for number, group in enumerate(groups)]


def require_optimizer(optimizer: object) -> None:
    """Refuse what is no optimizer, for instance the network whose parameters it trains.

    Raises:
        OptimizerError: The message says how to build an optimizer with a param group for each layer.
    """
    if not hasattr(optimizer, "param_groups"):
        raise OptimizerError(
            f"expected a torch.optim.Optimizer, not a {type(optimizer).__name__}; build one from the layers of the "
            "network: torch.optim.SGD(param_groups(model, map_layers(model, example_input), lr=0.01))"
        )


def require_single_multiplier(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose learning rates are multiplied already, for instance by a ``MetaLR`` or a replay.

    Raises:
        OptimizerError: The message names the attached object.
    """
    owners = [getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_pre_hooks.values()]
    attached = [type(owner).__name__ for owner in owners if isinstance(owner, LRMultiplier)]
    if attached:
        raise OptimizerError(
            f"a {attached[0]} is attached to this optimizer already, and two would multiply its learning rates twice; "
            "keep the first, or call its detach() before"
        )


def call_before_update(ready: Callable[[], None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Call ``ready`` as soon as the gradients of a step are there: at once, or after the step's closure.

    Args:
        ready: The function to call when all gradients are there, before the parameters change.
        args: Positional arguments of ``Optimizer.step``, the optimizer itself first.
        kwargs: Keyword arguments of ``Optimizer.step``.

    Returns:
        The arguments to run the step with. A closure is replaced by one that calls ``ready`` at its end.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        ready()
        return args, kwargs
    calls: list[Any] = []

    def closure_then_ready() -> Any:
        if calls:
            raise OptimizerError(
                f"{type(args[0]).__name__} calls its closure several times in one step; learning rates can be "
                "multiplied only for optimizers that call it once"
            )
        loss = closure()
        calls.append(loss)
        ready()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure_then_ready}
    return (args[0], closure_then_ready, *args[2:]), kwargs

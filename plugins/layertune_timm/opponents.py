"""Auto-RGN, L2-SP, LP-FT, gradual unfreezing and schedule-free optimizers in timm's ``train.py``."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from layertune import L2SP, AutoRGN, OptimizerError, PhasedFreezing
from layertune.hosts.evaluation_weights import HasModes, follow_mode
from layertune.layers.names import unwrap
from layertune_timm.layers import map_layers
from layertune_timm.train_options import Opponent

__all__ = ["EpochPhases", "attach_opponent", "follow_model"]

logger = logging.getLogger("layertune_timm")

Undo = Callable[[], object]


class EpochPhases:
    """Enter the phase of each epoch, as timm's scheduler counts epochs.

    Args:
        freezing: The freezing by phases.
        epochs: The number of epochs of each phase.

    Attributes:
        scheduled: Whether a scheduler was given, without which no phase ends.
    """

    def __init__(self, freezing: PhasedFreezing, epochs: int) -> None:
        self._freezing, self._epochs = freezing, epochs
        self.scheduled = False
        self._enter(0)

    def follow(self, scheduler: Any) -> None:
        """Follow a scheduler, whose ``step(epoch)`` ends an epoch, or names the first one of a resumed run.

        Args:
            scheduler: A scheduler of timm.

        Raises:
            OptimizerError: timm made none.
        """
        if scheduler is None:
            raise OptimizerError("phases follow timm's scheduler, and there is none; give another --sched")
        own = scheduler.step

        def step(epoch: int, *args: Any, **kwargs: Any) -> Any:
            self._enter(epoch)
            return own(epoch, *args, **kwargs)

        scheduler.step = step
        self.scheduled = True

    def _enter(self, epoch: int) -> None:
        before = self._freezing.phase
        self._freezing.enter(epoch // self._epochs + 1)
        if self._freezing.phase != before:
            logger.info("Epoch %d: phase %d of %d", epoch, self._freezing.phase, self._freezing.count)


def attach_opponent(
    opponent: Opponent, model: nn.Module, optimizer: Optimizer, *, coarse: bool
) -> tuple[EpochPhases | None, Undo]:
    """Attach a method to timm's optimizer and model.

    Args:
        opponent: The method.
        model: The model.
        optimizer: The optimizer, over groups that name layers.
        coarse: Whether layers are timm's coarse groups.

    Returns:
        The phases, for a method that has some; and the function that removes what was attached.
    """
    if opponent.name == "auto_rgn":
        return None, AutoRGN(optimizer).detach
    layers = map_layers(model, coarse=coarse)
    if opponent.name == "l2_sp":
        alpha, beta = opponent.numbers
        penalty = L2SP(unwrap(model), layers, alpha=alpha, beta=beta)
        return None, optimizer.register_step_pre_hook(lambda *_: penalty.add_gradient(optimizer)).remove
    freezing = PhasedFreezing(unwrap(model), layers, opponent.name)
    return EpochPhases(freezing, int(opponent.numbers[0])), freezing.undo


def follow_model(optimizer: Optimizer, model: nn.Module) -> Undo:
    """Let a schedule-free optimizer follow the mode of timm's model; nothing happens for other optimizers.

    Returns:
        The function that removes what was attached.
    """
    if not isinstance(optimizer, HasModes):
        return lambda: None
    if any(module._buffers.get("running_mean") is not None for module in model.modules()):
        logger.warning(
            "This model has batch norms, whose running statistics belong to the weights that are trained, not to the "
            "averaged ones that a schedule-free optimizer is evaluated at; timm's train.py has no place to renew them. "
            "Take a model without batch norms, or renew them in a loop of your own with layertune.evaluation_weights."
        )
    return follow_mode(optimizer, unwrap(model)).remove

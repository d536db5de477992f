"""GammaPenaltyHandler: the BNScale penalty in MONAI's engines."""

from typing import Any

from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from layertune import GammaPenalty
from layertune_monai.handlers.engine import check_not_begun, network_of

__all__ = ["GammaPenaltyHandler"]


class GammaPenaltyHandler:
    """Ask all gammas to be large and alike while an engine trains; see ``layertune.GammaPenalty`` for the penalty.

    The engine and its loss stay as they are: the penalty's gradient is added to that of the loss in each step of the
    optimizer, once for all batches that the step accumulates, and after a ``GradScaler`` has unscaled. The loss that is
    reported does not hold it. It is added from the first run's start until ``detach()``.

    Args:
        optimizer: the engine's.
        alpha: weight of the gammas' mean.
        beta: weight of their standard deviation.
        weight: lambda; 0 changes nothing, bit for bit.
        absolute: read |gamma| in place of gamma.
        network: the one that the optimizer trains; ``engine.network`` by default.

    Attributes:
        penalty: what is added, from the start of the run on.

    Raises:
        ModelError: in ``attach`` for an engine that has begun; when the run starts, for an engine without a network.
        AlchemyError: when the run starts, for a setting out of range. A network without gammas gets a warning.

    Example:
        >>> from torch.optim import SGD
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> handler = GammaPenaltyHandler(SGD(net.parameters(), lr=0.1), weight=1e-4)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        weight: float = 1e-4,
        absolute: bool = False,
        network: nn.Module | None = None,
    ) -> None:
        self.optimizer, self.network = optimizer, network
        self.settings: dict[str, Any] = {"alpha": alpha, "beta": beta, "weight": weight, "absolute": absolute}
        self.penalty: GammaPenalty | None = None
        self._hook: RemovableHandle | None = None

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: the engine has begun.
        """
        check_not_begun(engine, self)
        if not engine.has_event_handler(self._begin, Events.STARTED):
            engine.add_event_handler(Events.STARTED, self._begin)

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        if self._hook is not None:
            self._hook.remove()
        self.penalty, self._hook = None, None

    def _begin(self, engine: Any) -> None:
        if self.penalty is None:
            penalty = GammaPenalty(network_of(engine, self), **self.settings)
            self._hook = self.optimizer.register_step_pre_hook(lambda *_: penalty.add_gradient(self.optimizer))
            self.penalty = penalty

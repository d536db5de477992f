"""GammaPenaltyHandler: the BNScale penalty in MONAI's engines."""

from typing import Any, Unpack

from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from layertune import GammaPenalty
from layertune.hosts.gamma_penalty import PenaltyOptions, PenaltySession, PenaltySettings
from layertune_monai.handlers.engine import attach_once, network_of

__all__ = ["GammaPenaltyHandler"]


class GammaPenaltyHandler:
    """Keep all gammas large and alike while an engine trains; see ``layertune.GammaPenalty`` for the penalty.

    The engine and its loss stay as they are. The penalty's gradient is added to that of the loss in each step of the
    optimizer, once for all batches that the step accumulates, and after a ``GradScaler`` has unscaled. The reported
    loss does not contain the penalty. The gradient is added from the start of the first run until ``detach()``.

    Args:
        optimizer: The optimizer that the engine steps; it gets the gradient of the penalty.
        network: The network that the optimizer trains. Default: ``engine.network``.
        **settings: ``alpha``, ``beta``, ``weight`` and ``absolute`` of ``layertune.GammaPenalty``, with the defaults
            of that class.

    Attributes:
        penalty: The penalty, from the start of the first run until ``detach()``.

    Raises:
        AlchemyError: At once, for a setting out of range. When the run starts, if another handler adds a penalty for
            the same gammas. A network without gammas gets a warning.
        ModelError: In ``attach``, for an engine that has begun. When the run starts, for an engine without a network.

    Example:
        >>> from torch.optim import SGD
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> handler = GammaPenaltyHandler(SGD(net.parameters(), lr=0.1), weight=1e-4)
    """

    def __init__(
        self, optimizer: Optimizer, *, network: nn.Module | None = None, **settings: Unpack[PenaltyOptions]
    ) -> None:
        self.settings = PenaltySettings.given(**settings)
        self.optimizer, self.network = optimizer, network
        self._session = PenaltySession(self.settings, owner=type(self).__name__)
        self._hook: RemovableHandle | None = None

    @property
    def penalty(self) -> GammaPenalty | None:
        """The penalty, from the start of the first run until ``detach()``."""
        return self._session.penalty

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: The engine has begun.
        """
        attach_once(engine, self, {Events.STARTED: self._begin})

    def detach(self) -> None:
        """Leave the optimizer as it was before."""
        if self._hook is not None:
            self._hook.remove()
        self._session.end()
        self._hook = None

    def _begin(self, engine: Any) -> None:
        if self.penalty is None:
            self._session.begin(network_of(engine, self), [self.optimizer])
            self._hook = self.optimizer.register_step_pre_hook(lambda *_: self._session.add_gradient(self.optimizer))

"""LayerFreezeHandler: train only the layers that a policy chooses, in MONAI's engines."""

from typing import Any

from ignite.engine import Events
from torch import nn

from layertune import freeze
from layertune.hosts.module_layers import Layers, find_layers
from layertune.layers.layer import Depth, Granularity
from layertune.policies.by_name import scheme
from layertune.policies.freezing import Frozen
from layertune.policies.policies import Policy, scales_of
from layertune_monai.handlers.engine import attach_once, check_not_wrapped, example_inputs, network_of
from layertune_monai.handlers.report import log_layers

__all__ = ["LayerFreezeHandler"]


class LayerFreezeHandler:
    """Train only the layers to which a policy gives a scale above 0.

    The other layers are frozen when the first iteration starts, so no backward pass runs below the first trained
    layer. The optimizer may hold all parameters: it leaves those without a gradient alone. The layers are traced with
    the shape of the first batch, and the log says which of them train. Norms of frozen layers do not learn, but in
    train mode their running statistics follow the data.

    Args:
        policy: A policy, for example ``layertune.BiDirectional(3, 6)``, or the name of one, for example
            ``"bidirectional"``; of its scales only 0 or not 0 matters.
        layers: The layers of the network or of a network inside it, or a function from the network to them. Default:
            those that a trace with the first batch finds.
        network: The network that is trained. Default: ``engine.network``.
        depth: The depth of traced layers: ``"I1"`` (order of execution, the default) or ``"I2"`` (resolution level of
            the U-Net), MetaLR sec. 3.3.
        granularity: The size of traced layers: ``"module"``, ``"block"`` (default) or ``"stage"``.

    Raises:
        LayertuneError: At once, for an unknown name of a policy. In ``attach``, for an engine that has begun. In the
            first iteration, for a network that cannot be traced or is wrapped by DDP, or a policy that does not fit.

    Example:
        >>> from layertune import LastLayer
        >>> handlers = [LayerFreezeHandler(LastLayer()), LayerFreezeHandler("bidirectional", depth="I2")]
    """

    def __init__(
        self,
        policy: Policy | str,
        *,
        layers: Layers | None = None,
        network: nn.Module | None = None,
        depth: Depth = "I1",
        granularity: Granularity = "block",
    ) -> None:
        self.policy = scheme(policy) if isinstance(policy, str) else policy
        self.layers, self.network = layers, network
        self.depth: Depth = depth
        self.granularity: Granularity = granularity
        self._frozen: Frozen | None = None

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that the handler has frozen; none before the first iteration."""
        return self._frozen.names if self._frozen else ()

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: The engine has begun.
        """
        attach_once(engine, self, {Events.ITERATION_STARTED: self._begin})

    def undo(self) -> None:
        """Unfreeze the parameters that the handler has frozen."""
        if self._frozen is not None:
            self._frozen.undo()
            self._frozen = None

    def _begin(self, engine: Any) -> None:
        if self._frozen is not None:
            return
        network = network_of(engine, self)
        check_not_wrapped(network)
        inner, layers = find_layers(
            network,
            self.layers,
            lambda: example_inputs(engine, network),
            depth=self.depth,
            granularity=self.granularity,
        )
        self._frozen = freeze(inner, layers, self.policy)
        log_layers(layers, scales_of(layers, self.policy))

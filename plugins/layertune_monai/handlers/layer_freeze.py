"""LayerFreezeHandler: a static scheme in MONAI's engines."""

from typing import Any

from ignite.engine import Events
from torch import nn

from layertune import LayerMap, freeze, map_layers
from layertune.layers.layer import Depth, Granularity
from layertune.policies.by_name import scheme
from layertune.policies.freezing import Frozen
from layertune.policies.policies import Policy, scales_of
from layertune_monai.handlers.engine import check_not_begun, check_not_wrapped, example_inputs
from layertune_monai.handlers.report import log_layers

__all__ = ["LayerFreezeHandler"]


class LayerFreezeHandler:
    """Train only the layers to which a policy gives a scale above 0.

    The others are frozen when the first iteration starts, so no backward pass runs below the first tuned layer; the
    optimizer, which may hold all parameters, leaves those without a gradient alone. The layers are traced with the
    shape of the first batch, and the log says which of them train. Norms of frozen layers do not learn, but in train
    mode their running statistics keep following the data.

    Args:
        policy: ``layertune.BiDirectional(3, 6)`` and its like, or the name of a scheme; its
            scales other than 0 are not used.
        layers: the layers of the network, if they are not to be traced.
        network: the one that is trained; ``engine.network`` by default.
        depth: ``"I1"`` (order of execution) or ``"I2"`` (resolution level of the U), MetaLR sec. 3.3.
        granularity: ``"module"``, ``"block"`` or ``"stage"``.

    Raises:
        LayertuneError: at once for a scheme that is not known; in ``attach`` for an engine that has begun; in the
            first iteration for a network that cannot be traced or is wrapped already, or a policy that does not fit.

    Example:
        >>> from layertune import LastLayer
        >>> handlers = [LayerFreezeHandler(LastLayer()), LayerFreezeHandler("bidirectional", depth="I2")]
    """

    def __init__(
        self,
        policy: Policy | str,
        *,
        layers: LayerMap | None = None,
        network: nn.Module | None = None,
        depth: Depth = "I1",
        granularity: Granularity = "block",
    ) -> None:
        self.policy = scheme(policy) if isinstance(policy, str) else policy
        self.layers = layers
        self.network = network
        self.depth: Depth = depth
        self.granularity: Granularity = granularity
        self._frozen: Frozen | None = None

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that were frozen here; none before the first iteration."""
        return self._frozen.names if self._frozen else ()

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has not begun.

        Raises:
            ModelError: the engine has begun.
        """
        check_not_begun(engine, self)
        if not engine.has_event_handler(self._begin, Events.ITERATION_STARTED):
            engine.add_event_handler(Events.ITERATION_STARTED, self._begin)

    def undo(self) -> None:
        """Let the frozen parameters require a gradient again."""
        if self._frozen is not None:
            self._frozen.undo()
            self._frozen = None

    def _begin(self, engine: Any) -> None:
        if self._frozen is not None:
            return
        network = self.network if self.network is not None else engine.network
        check_not_wrapped(network)
        layers = self.layers
        if layers is None:
            inputs = example_inputs(engine, network)
            layers = map_layers(network, *inputs, depth=self.depth, granularity=self.granularity)
        self._frozen = freeze(network, layers, self.policy)
        log_layers(layers, scales_of(layers, self.policy))

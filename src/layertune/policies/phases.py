"""Phases of a training that tune other layers one after another: LP-FT and gradual unfreezing."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from torch import nn

from layertune.errors import PolicyError
from layertune.layers.layer import LayerMap
from layertune.layers.names import named_parameters
from layertune.policies.freezing import Frozen, freeze
from layertune.policies.policies import AllLayers, LastLayer, LayerWise, Policy, scales_of

__all__ = ["LPFT", "PHASES", "GradualUnfreezing", "PhasedFreezing", "Phases", "named_phases"]

Phases = Callable[[LayerMap], list[Policy]]
"""A function that gives the policies of a training's phases, in order, for the layers of a network."""


def LPFT() -> Phases:  # noqa: N802 a noun, as users write it
    """Tune the head first, then all layers: linear probing, then fine-tuning (Kumar et al., ICLR 2022, LP-FT).

    A head that is random at the start sends gradients into the network that distort its pre-trained features. The paper
    (sec. 4.2) trains the head on the frozen features, and goes on from there with all layers, at a rate that is chosen
    among six. For features that are frozen entirely, freeze the statistics of batch norms too:
    ``PhasedFreezing(model, layers, LPFT(), statistics=True)``.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> layers = map_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), empty(1, 4))
        >>> [policy(layers) for policy in LPFT()(layers)]
        [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    """
    return lambda layers: [LastLayer(), AllLayers()] if layers.d > 1 else [AllLayers()]


def GradualUnfreezing() -> Phases:  # noqa: N802 a noun, as users write it
    """Tune the head first, and one depth more in each phase (Howard and Ruder, ACL 2018, ULMFiT, sec. 3.3).

    In the paper a phase is an epoch. All layers are tuned from the phase d on, in a network of depth d.

    Example:
        >>> from layertune import map_layers
        >>> from torch import empty, nn
        >>> layers = map_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), empty(1, 4))
        >>> [policy(layers) for policy in GradualUnfreezing()(layers)]
        [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    return lambda layers: [LayerWise(first) for first in range(layers.d, 0, -1)]


PHASES: dict[str, Callable[[], Phases]] = {"lp_ft": LPFT, "gradual_unfreezing": GradualUnfreezing}
"""The kinds of phases by the names that files and command lines use."""


def named_phases(phases: Phases | str) -> Phases:
    """Return phases that were given by their name, or as they are.

    Args:
        phases: A name in ``PHASES``, or a function that gives the policies of all phases.

    Raises:
        PolicyError: The name is unknown, or this is no function of a network's layers.

    Example:
        >>> named_phases("lpft")
        Traceback (most recent call last):
        layertune.errors.PolicyError: there are no phases 'lpft'; the names are lp_ft, gradual_unfreezing
    """
    if isinstance(phases, str):
        if phases not in PHASES:
            raise PolicyError(f"there are no phases {phases!r}; the names are {', '.join(PHASES)}")
        return PHASES[phases]()
    factories: tuple[object, ...] = tuple(PHASES.values())
    if phases in factories or not callable(phases):
        raise PolicyError(f"phases are LPFT(), GradualUnfreezing() or one of {', '.join(PHASES)}, not {phases!r}")
    return phases


class PhasedFreezing:
    """Freeze the layers that the present phase of a training leaves out.

    Build the optimizer over all layers, before the first phase: it skips parameters without a gradient, and frozen ones
    have none. Under ``DistributedDataParallel``, pass ``find_unused_parameters=True``.

    Args:
        model: The network.
        layers: The layers of this network.
        phases: ``LPFT()`` or ``"lp_ft"``, ``GradualUnfreezing()`` or ``"gradual_unfreezing"``, or another function that
            gives the policies of all phases.
        statistics: Whether the running statistics of the norms in frozen layers are frozen too.

    Attributes:
        count: The number of phases.
        phase: The present phase, from 1; 0 before the first and after ``undo()``.

    Raises:
        PolicyError: The name is unknown, there are no phases, or a policy does not fit the layers.

    Example:
        >>> import torch
        >>> from layertune import map_layers
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with PhasedFreezing(net, map_layers(net, torch.empty(1, 4)), GradualUnfreezing()) as freezing:
        ...     for epoch in range(1, 5):
        ...         freezing.enter(epoch)
        ...         print([layer.weight.requires_grad for layer in net])
        [False, False, True]
        [False, True, True]
        [True, True, True]
        [True, True, True]
    """

    def __init__(self, model: nn.Module, layers: LayerMap, phases: Phases | str, *, statistics: bool = False) -> None:
        self._model, self._layers, self._statistics = model, layers, statistics
        self._policies = named_phases(phases)(layers)
        if not self._policies:
            raise PolicyError("these phases are none; give at least one policy, as GradualUnfreezing() does")
        for policy in self._policies:
            scales_of(layers, policy)
        self._frozen: Frozen | None = None
        self.count = len(self._policies)
        self.phase = 0

    def enter(self, phase: int) -> None:
        """Begin a phase; the last one goes on where ``phase`` is above ``count``.

        Call it between two steps. A resumed run enters the phase that it was in.

        Args:
            phase: The number of the phase, from 1.

        Raises:
            PolicyError: ``phase`` is below 1.
        """
        if phase < 1:
            raise PolicyError(f"phases count from 1, and there is no phase {phase}")
        phase = min(phase, self.count)
        if phase == self.phase:
            return
        self.undo()
        policy = self._policies[phase - 1]
        if not all(policy(self._layers)):
            self._frozen = freeze(self._model, self._layers, policy, statistics=self._statistics)
            parameters = named_parameters(self._model)
            for name in self._frozen.names:
                parameters[name].grad = None  # an optimizer would make a step along a gradient that is left over
        self.phase = phase

    def undo(self) -> None:
        """Let all parameters train again that were frozen here; a second call does nothing."""
        if self._frozen is not None:
            self._frozen.undo()
            self._frozen = None
        self.phase = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()

"""Network Alchemy in a host's run: its phases, what is saved, and what the user is told."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.alchemy.norms import gammas
from layertune.alchemy.phases import Alchemy
from layertune.hosts.alchemy_settings import AlchemySettings
from layertune.hosts.gamma_penalty import PenaltySession

__all__ = ["AlchemyHolder", "AlchemyPhases", "AlchemySession"]


@runtime_checkable
class AlchemyPhases(Protocol):
    """Anything that trains in the phases of Network Alchemy, seen by what waits for the last one.

    MetaLR's handlers and callbacks attach once ``maximises`` is true, since all layers train from then on.
    """

    @property
    def maximises(self) -> bool:
        """Whether the maximisation has begun."""
        ...


class AlchemySession:
    """Run the phases of Network Alchemy in a host, over one run or several.

    A host makes the session where it reads its user's settings, and then calls:

    - ``begin`` when network and optimizer exist and hold the weights to start from;
    - ``modify_if_due`` before the first training step;
    - ``add_gradient`` before each step of the optimizer, or adds ``penalty()`` to its loss;
    - ``end_epoch`` after each epoch, or after each validation;
    - ``end`` when the run is over or has failed.

    Args:
        settings: The settings of the phases and of their penalty.
        owner: The name of the host's class, for messages.

    Attributes:
        alchemy: The phases: ``phase``, ``history``, ``redundant``. ``None`` before ``begin``; they stay readable after
            ``end``.
    """

    def __init__(self, settings: AlchemySettings, *, owner: str) -> None:
        self.settings = settings
        self.alchemy: Alchemy | None = None
        self._penalty = PenaltySession(settings, owner=owner)
        self._state: dict[str, Any] = {}

    @property
    def running(self) -> bool:
        """Whether the session has begun and has not ended."""
        return self._penalty.penalty is not None

    @property
    def phase(self) -> str | None:
        """The phase that the next epoch trains, also of a state that was loaded; ``None`` before a first ``begin``."""
        return self._state.get("phase") if self.alchemy is None else self.alchemy.phase

    @property
    def maximises(self) -> bool:
        """Whether the maximisation has begun: from then on all layers train, and their rates can be learned."""
        return self.phase in ("maximisation", "finished")

    def begin(self, model: nn.Module, optimizer: Optimizer, *example_inputs: Any) -> None:
        """Start the phases, or go on from a state that was loaded or left by an earlier run.

        Args:
            model: The network, also wrapped.
            optimizer: The optimizer of all its parameters.
            *example_inputs: The arguments of the network's forward, for a trace; nothing is computed.

        Raises:
            AlchemyError: A setting or the loaded state does not fit the network, or another session adds a penalty for
                the same gammas.
            ModelError: The network has no gamma, or refuses the example inputs.
            OptimizerError: The optimizer holds no gamma of the network.
        """
        state = self.state_dict()
        self.end()
        gammas(model)  # raises an error, where the penalty alone would only warn
        penalty = self._penalty.begin(model, [optimizer])
        try:
            alchemy = Alchemy(model, optimizer, *example_inputs, penalty=penalty, **self.settings.phases)
            if state:
                _load(alchemy, state)
        except BaseException:  # an interrupt too
            self._penalty.end()
            raise
        self.alchemy = alchemy

    def modify_if_due(self) -> bool:
        """Modify the redundant kernels now if no epoch comes before: the run has no identification, or it ended there.

        Returns:
            Whether the maximisation begins.
        """
        if self.alchemy is None or self.alchemy.phase != "modification":
            return False
        self.alchemy.modify()
        return True

    def penalty(self) -> Tensor:
        """Return the part of the loss that the present phase adds: lambda R in the maximisation, or else 0."""
        assert self.alchemy is not None, "asked for after begin()"
        return self.alchemy.penalty()

    def add_gradient(self, *, scale: float | Tensor | None = None) -> None:
        """Add the gradient of ``penalty()`` to that of the loss, where a host owns the backward pass.

        Args:
            scale: Factor on all gradients at this moment; see ``GammaPenalty.add_gradient``.
        """
        if self.running and self.alchemy is not None:
            self.alchemy.add_gradient(scale=scale)

    def end_epoch(self, metric: float | None = None) -> bool:
        """Count an epoch, and change the phase if its end is reached; the same on all ranks.

        Args:
            metric: The validation metric of the epoch, if there is one.

        Returns:
            Whether another phase begins. ``message`` then says which; the phase ``"finished"`` ends the run.

        Raises:
            AlchemyError: A phase waits for a metric that is missing, or the modification is refused.
        """
        return self.alchemy is not None and self.alchemy.update(metric)

    @property
    def message(self) -> str:
        """The line for the user's log after a change of phase."""
        redundant = None if self.alchemy is None else self.alchemy.redundant
        if self.phase != "maximisation" or redundant is None:
            return f"Network Alchemy: {self.phase}"
        return (
            f"Network Alchemy: {redundant.count} of {redundant.total} kernels, |gamma| < {redundant.threshold:.3g}, "
            f"start afresh, and all layers train from here on; {len(redundant.unpaired)} norms could not be judged"
        )

    @property
    def unfinished(self) -> str | None:
        """The warning at the end of a run in which the identification did not end, or ``None``."""
        if self.phase != "identification":
            return None
        return (
            "The run ended within Network Alchemy's identification, so only the norms were trained. Train for more "
            "epochs, give the identification fewer, or resume from a checkpoint"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return phase, progress and redundant kernels in plain types; empty before the first ``begin``."""
        return self._state if self.alchemy is None else self.alchemy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: at once in a run, or else at the next ``begin``.

        Args:
            state: What ``state_dict`` returned. An empty state holds no phase, and does not change a run.
        """
        if self.running and self.alchemy is not None:
            if state:
                self.alchemy.load_state_dict(state)
        else:
            self._state, self.alchemy = state, None

    def end(self) -> None:
        """Unfreeze the network and add no penalty any more; a second call does nothing."""
        self._penalty.end()
        if self.alchemy is not None:
            self.alchemy.detach()

    def __getstate__(self) -> dict[str, Any]:
        """Hand another process the settings and the state, and not the network of this one."""
        return {**vars(self), "alchemy": None, "_state": self.state_dict()}


class AlchemyHolder:
    """Give a host's class the public attributes of the ``AlchemySession`` that it holds; see ``AlchemyPhases``."""

    _session: AlchemySession

    @property
    def settings(self) -> AlchemySettings:
        """The complete settings of Network Alchemy."""
        return self._session.settings

    @property
    def alchemy(self) -> Alchemy | None:
        """The phases, from the start of the first run on."""
        return self._session.alchemy

    @property
    def maximises(self) -> bool:
        """Whether the maximisation has begun: from then on the rates of all layers can be learned."""
        return self._session.maximises

    def state_dict(self) -> dict[str, Any]:
        """Return phase, progress and redundant kernels; empty before the first run."""
        return self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, with the state of network and optimizer of the same moment."""
        self._session.load_state_dict(state_dict)


def _load(alchemy: Alchemy, state: dict[str, Any]) -> None:
    try:
        alchemy.load_state_dict(state)
    except BaseException:  # an interrupt too: nothing stays frozen
        alchemy.detach()
        raise

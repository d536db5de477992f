"""The penalty on gammas in a host's run: its settings, and that no gamma gets it twice."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self, TypedDict
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.alchemy.penalty import ALPHA, BETA, WEIGHT, GammaPenalty, check_weights
from layertune.errors import AlchemyError

__all__ = ["PenaltyOptions", "PenaltySession", "PenaltySettings", "check_switches"]


class PenaltyOptions(TypedDict, total=False):
    """The arguments of a host's class that make up ``PenaltySettings``; ``None`` means not given."""

    alpha: float | None
    beta: float | None
    weight: float | None
    absolute: bool | None


@dataclass(frozen=True, kw_only=True)
class PenaltySettings:
    """Hold the settings of ``GammaPenalty``, complete and checked.

    Attributes:
        alpha: Weight of the gammas' mean.
        beta: Weight of the gammas' standard deviation, >= 0.
        weight: Weight lambda of the whole penalty, >= 0. 0 changes nothing, bit for bit.
        absolute: Whether the penalty reads |gamma| in place of gamma.

    Raises:
        AlchemyError: A setting is out of range. The message names the setting, its range and the value.

    Example:
        >>> PenaltySettings.given(weight=1e-3, beta=None)
        PenaltySettings(alpha=0.1, beta=1.0, weight=0.001, absolute=False)
    """

    alpha: float = ALPHA
    beta: float = BETA
    weight: float = WEIGHT
    absolute: bool = False

    def __post_init__(self) -> None:
        check_weights(alpha=self.alpha, beta=self.beta, weight=self.weight)
        check_switches(self, "absolute")

    @classmethod
    def given(cls, **values: Any) -> Self:
        """Build the record from the values that a user gave.

        Args:
            **values: Settings by name. ``None`` means that the user did not give this setting.
        """
        return cls(**{name: value for name, value in values.items() if value is not None})

    def penalty(self, model: nn.Module) -> GammaPenalty:
        """Make the penalty of a network; a network without gammas gets a warning."""
        return GammaPenalty(model, self.alpha, self.beta, self.weight, absolute=self.absolute)


class PenaltySession:
    """Add the penalty on gammas to the gradients of a host's run.

    A host makes the session where it reads its user's settings, begins it when network and optimizer exist, and ends it
    when the run is over or has failed.

    Args:
        settings: The settings of the penalty.
        owner: The name of the host's class, for messages.

    Attributes:
        penalty: The penalty while the session runs, or ``None``.
    """

    def __init__(self, settings: PenaltySettings, *, owner: str) -> None:
        self.settings, self.owner = settings, owner
        self.penalty: GammaPenalty | None = None

    def begin(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> GammaPenalty:
        """Find the gammas of a network.

        Args:
            model: The network that is trained, also wrapped.
            optimizers: All optimizers to whose gradients the penalty will be added.

        Raises:
            AlchemyError: Another session adds a penalty for the same gammas to one of the optimizers.
        """
        self.end()
        penalty = self.settings.penalty(model)
        _claim(penalty, list(optimizers), self.owner)
        self.penalty = penalty
        return penalty

    def add_gradient(self, optimizer: Optimizer, *, scale: float | Tensor | None = None) -> None:
        """Add the penalty's gradient to that of the loss, between the backward pass and the optimizer's step.

        Args:
            optimizer: The optimizer that is about to step; only the gammas that it holds get a gradient.
            scale: Factor on all gradients at this moment; see ``GammaPenalty.add_gradient``.
        """
        if self.penalty is not None:
            self.penalty.add_gradient(optimizer, scale=scale)

    def end(self) -> None:
        """Stop adding the penalty; a second call does nothing."""
        if self.penalty is not None:
            _release(self.penalty)
        self.penalty = None

    def __getstate__(self) -> dict[str, Any]:
        """Hand another process the settings, and not the parameters of this one."""
        return {**vars(self), "penalty": None}


def check_switches(settings: object, *names: str) -> None:
    """Check that settings are ``True`` or ``False``.

    Raises:
        AlchemyError: A setting of these names is something else.
    """
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, bool):
            raise AlchemyError(f"{name} must be True or False, not {value!r}")


# By optimizer: the penalties that are added to its gradients, with the names of their owners. Neither keeps the other
# alive, so a handler that was thrown away without a `detach()` blocks nothing.
_CLAIMS: WeakKeyDictionary[Optimizer, WeakKeyDictionary[GammaPenalty, str]] = WeakKeyDictionary()


def _claim(penalty: GammaPenalty, optimizers: list[Optimizer], owner: str) -> None:
    for optimizer in optimizers if penalty.weight else []:
        claims = _CLAIMS.setdefault(optimizer, WeakKeyDictionary())
        for other, name in claims.items():
            if not {id(gamma) for gamma in penalty.gammas}.isdisjoint(id(gamma) for gamma in other.gammas):
                _release(penalty)
                raise AlchemyError(
                    f"{owner} would add the penalty on gammas to the gradients of this {type(optimizer).__name__}, and "
                    f"{name} adds one already, so the penalty would count twice; leave one of the two out. The last "
                    "phase of Network Alchemy has a penalty of its own, with the settings alpha, beta and weight"
                )
        claims[penalty] = owner


def _release(penalty: GammaPenalty) -> None:
    for claims in _CLAIMS.values():
        claims.pop(penalty, None)

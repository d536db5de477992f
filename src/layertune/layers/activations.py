"""The activation that follows each norm, and the gain that Kaiming initialisation takes from it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Activation", "ActivationTrail"]

# aten's names of what follows norms. `elu` is SELU and CELU too, `hardtanh` is ReLU6.
LIKE_RELU = {"relu", "gelu", "silu", "elu", "mish", "hardswish", "hardtanh", "softplus", "rrelu_with_noise"}
LEAKY = {"leaky_relu", "prelu", "_prelu_kernel"}
SATURATED = {"sigmoid", "hardsigmoid", "tanh"}
ACTIVATIONS = LIKE_RELU | LEAKY | SATURATED
SELU_SCALE = 1.0507009873554805  # lambda of Klambauer et al. 2017; ELU and CELU have 1 in its place
DEFAULT_SLOPE = 0.01  # of torch's leaky_relu, which leaves it out of the traced call


@dataclass(frozen=True)
class Activation:
    """The activation between a norm and the next convolution or linear layer.

    Attributes:
        operator: The activation's name in aten; ``"linear"`` if there is none.
        slope: The slope below zero of a leaky ReLU.
        parameter: The name of the parameter that holds the slope of a PReLU.
    """

    operator: str
    slope: float | None = None
    parameter: str | None = None

    def gain(self, slope: float | None = None) -> float:
        """Return the factor of 1 / sqrt(fan) that keeps the variance (He et al. 2015, eqs. 10 and 15).

        Activations for which torch knows no gain (GELU, SiLU, ELU, Mish, ...) are smooth forms of the ReLU and get its
        gain.

        Args:
            slope: The present slope of a PReLU, as the mean over its channels.

        Example:
            >>> round(Activation("relu").gain() ** 2, 6), round(Activation("leaky_relu", slope=0.5).gain() ** 2, 6)
            (2.0, 1.6)
            >>> Activation("linear").gain()
            1
        """
        if self.operator in LEAKY:
            slope = self.slope if slope is None else slope
            return nn.init.calculate_gain("leaky_relu", DEFAULT_SLOPE if slope is None else slope)
        if self.operator in {"sigmoid", "tanh", "selu"}:
            return nn.init.calculate_gain(self.operator)  # type: ignore[arg-type]  # one of three literals
        return nn.init.calculate_gain("relu" if self.operator in LIKE_RELU else "linear")


class ActivationTrail:
    """Follow the output of norms to the activation that reads it, through pooling, dropout and shortcuts.

    Attributes:
        found: The path of each norm to the activation that follows it.
    """

    def __init__(self) -> None:
        self.found: dict[str, Activation] = {}
        self._waiting: dict[int, frozenset[str]] = {}  # tensors to the norms that no activation has followed yet

    def follow(
        self,
        operator: str,
        args: Sequence[Any],
        active: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        norm: str | None,
        ends: bool,
        weights: Collection[str],
    ) -> None:
        """Take note of one operator of the forward.

        Args:
            operator: The name of the operator in aten.
            args: The arguments of the operator.
            active: The input tensors that depend on the network's input.
            outputs: The output tensors of the operator.
            norm: The path of the norm that the operator is a part of, or ``None``.
            ends: Whether the operator is a convolution or linear layer, before which an activation has to come.
            weights: The names of the parameters among the inputs.
        """
        if norm is not None:
            norms = frozenset([norm])
        else:
            norms = frozenset[str]().union(*(self._waiting.get(id(tensor), frozenset()) for tensor in active))
        if norm is None and norms and (ends or operator in ACTIVATIONS):
            activation = Activation("linear") if ends else _read(operator, args, weights)
            for name in norms:
                self.found.setdefault(name, activation)
            norms = frozenset()
        for tensor in outputs:
            self._waiting[id(tensor)] = norms


def _read(operator: str, args: Sequence[Any], weights: Collection[str]) -> Activation:
    if operator == "leaky_relu":
        return Activation(operator, slope=float(args[1]) if len(args) > 1 else DEFAULT_SLOPE)
    if operator in LEAKY:
        return Activation("prelu", slope=0.25, parameter=next(iter(weights), None))  # torch's initial slope
    if operator == "elu" and len(args) > 2 and abs(float(args[2]) - SELU_SCALE) < 1e-6:
        return Activation("selu")
    return Activation(operator)

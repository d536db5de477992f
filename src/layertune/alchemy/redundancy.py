"""Redundant kernels: kernels whose gamma is small.

Which norm scales which kernels, and why a norm scales none, is decided in ``layertune.alchemy.kernels``.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn

from layertune.alchemy.kernels import KernelNorm, KernelNorms, pair_kernels
from layertune.alchemy.norms import gammas, require_finite
from layertune.errors import AlchemyError, ModelError
from layertune.layers.names import unwrap
from layertune.layers.trace import Trace, trace

__all__ = ["THRESHOLD", "RedundantKernels", "check_limits", "default_threshold", "redundant_kernels"]

THRESHOLD = 0.05
"""The threshold of Network Alchemy by default: a kernel whose |gamma| is smaller is redundant."""


@dataclass(frozen=True)
class RedundantKernels:
    """The kernels that contribute little, and the norms whose kernels cannot be judged.

    Attributes:
        threshold: A kernel whose |gamma| is below this number is redundant.
        channels: The path of each norm that has redundant kernels, to the numbers of these kernels from 0.
        pairs: All norms that scale kernels, with the operation that holds the kernels.
        unpaired: The norms that scale no kernels of one operation, each with the reason; they are left alone.
    """

    threshold: float
    channels: Mapping[str, tuple[int, ...]]
    pairs: Mapping[str, KernelNorm]
    unpaired: Mapping[str, str]

    @property
    def count(self) -> int:
        """The number of redundant kernels."""
        return sum(map(len, self.channels.values()))

    @property
    def total(self) -> int:
        """The number of kernels that were judged."""
        return sum(pair.kernels for pair in self.pairs.values())

    def state(self) -> dict[str, Any]:
        """Return threshold and channels in plain types; the pairs follow from the network."""
        return {
            "threshold": self.threshold,
            "channels": {name: list(kernels) for name, kernels in self.channels.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], norms: KernelNorms) -> Self:
        """Build the record from what ``state()`` returned and the pairs of the same network.

        Raises:
            AlchemyError: The state names norms or kernels that the network does not have.
        """
        channels = {name: tuple(kernels) for name, kernels in state["channels"].items()}
        counts = {name: pair.kernels for name, pair in norms.pairs.items()}
        foreign = [
            name
            for name, kernels in channels.items()
            if not all(0 <= number < counts.get(name, 0) for number in kernels)
        ]
        if foreign:
            raise AlchemyError(
                f"the state holds redundant kernels of norms that scale no such kernels: {', '.join(foreign[:3])}; "
                "load it into the network that it was saved from, or start the identification anew"
            )
        return cls(float(state["threshold"]), channels, norms.pairs, norms.unpaired)


def redundant_kernels(
    model: nn.Module,
    *example_inputs: Any,
    threshold: float | None = None,
    quantile: float | None = None,
    whole_layers: bool = False,
    found: Trace | None = None,
) -> RedundantKernels:
    """Find the kernels whose gamma is small (Network Alchemy, sec. 3.2.2, Identification).

    A kernel is output channel c of a convolution or linear layer whose output only one norm reads. Norms in front of a
    pre-activation block or in a residual stream have no kernels in this sense: they are reported and never judged.

    Args:
        model: A network whose norms were trained while all else was frozen; see ``norm_only``.
        *example_inputs: The arguments of its forward, as for ``trace``; nothing is computed.
        threshold: A kernel is redundant if its |gamma| is below this number, > 0.
        quantile: The share of the network's kernels to find, in (0, 1), in place of a threshold.
        whole_layers: Whether all kernels of a layer may be redundant; by default this is an error.
        found: A trace of the model, in place of example inputs.

    Raises:
        AlchemyError: Not exactly one of threshold and quantile is given, or it is out of range; a gamma is not finite;
            or all kernels of a layer are below the threshold.
        ModelError: The network has no norm with a gamma, or its forward refuses the input.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> with torch.no_grad():
        ...     net[1].weight[2] = 0.01
        >>> redundant = redundant_kernels(net, torch.empty(2, 1, 8, 8), threshold=0.05)
        >>> redundant.channels, redundant.count, redundant.total
        ({'1': (2,)}, 1, 4)
    """
    sizes = gammas(model)
    require_finite(sizes)
    if found is None and not example_inputs:
        raise ModelError("redundant_kernels needs an example input to see which norm scales which kernels")
    norms = pair_kernels(model, found or trace(model, *example_inputs))
    if not norms.pairs:
        _warn_unpaired(model, norms)
    paired = {name: sizes[name].abs().flatten().double().cpu() for name in norms.pairs}
    limit = _threshold(threshold, quantile, list(paired.values()))
    small = {name: torch.nonzero(values < limit).flatten().tolist() for name, values in paired.items()}
    channels = {name: tuple(numbers) for name, numbers in small.items() if numbers}
    whole = [name for name, numbers in channels.items() if len(numbers) == norms.pairs[name].kernels]
    if whole and not whole_layers:
        raise AlchemyError(
            f"threshold {limit:.4g} takes all kernels of {len(whole)} layers ({', '.join(whole[:3])}), which would "
            "throw away what they learned; lower the threshold, or allow this with whole_layers=True"
        )
    return RedundantKernels(limit, channels, norms.pairs, norms.unpaired)


def default_threshold(threshold: float | None, quantile: float | None) -> float | None:
    """Return the threshold that a user gave, or ``THRESHOLD`` for a user who gave no quantile either."""
    return THRESHOLD if threshold is None and quantile is None else threshold


def check_limits(threshold: float | None, quantile: float | None) -> None:
    """Check the limit below which a kernel is redundant.

    Args:
        threshold: The limit of |gamma|, finite and above 0; or ``None``.
        quantile: The share of kernels to find, between 0 and 1; or ``None``.

    Raises:
        AlchemyError: Both or none are given, or one is out of range.
    """
    if (threshold is None) == (quantile is None):
        raise AlchemyError("give either a threshold for |gamma| or a quantile, the share of kernels to find")
    if threshold is not None and not (isinstance(threshold, Real) and 0 < threshold < math.inf):
        raise AlchemyError(f"a threshold for |gamma| is finite and above 0, not {threshold}")
    if quantile is not None and not (isinstance(quantile, Real) and 0 < quantile < 1):
        raise AlchemyError(f"a quantile is a share between 0 and 1, not {quantile}")


def _threshold(threshold: float | None, quantile: float | None, values: Sequence[Tensor]) -> float:
    check_limits(threshold, quantile)
    if threshold is not None:
        return float(threshold)
    assert quantile is not None
    return torch.quantile(torch.cat(list(values)), quantile).item() if values else 0.0


def _warn_unpaired(model: nn.Module, norms: KernelNorms) -> None:
    name, reason = next(iter(norms.unpaired.items()))  # a network without any gamma was refused before
    warnings.warn(
        f"no norm of {type(unwrap(model)).__name__} scales the kernels of one layer, so none can be redundant; "
        f"{name}: {reason}",
        stacklevel=3,
    )

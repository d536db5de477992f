"""The running average of the recent weights, and the movement of the weights away from it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from layertune.errors import OptimizerError
from layertune.metalr.correcting.displacement import Groups, Steps, local
from layertune.metalr.free.pieces import pieces
from layertune.metalr.inner_products import Shards, dot, shards_of, summed_over_ranks

__all__ = ["MEMORY", "RecentAverage", "total_squared_length", "usual_weights"]

MEMORY = 0.9  # of the average: some ten steps
KEY = "meta_average"
Summands = dict[Shards, list[Tensor]]
# A tenth of the way to the weights is less than a bit of them in few bits: the average would stand still.
KEPT_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class RecentAverage:
    """Keep an exponential average of the recent weights in the optimizer's param groups.

    The movement e = theta - average is the sum of the last steps, each weighted by 0.9 to the power of its age. The
    average needs one copy of the weights, in float32 where they have fewer bits. It lives in ``group["meta_average"]``
    by the parameter's place in the group, so it is saved with the optimizer.
    """

    def follow(self, groups: Groups, *, again: bool = True) -> bool:
        """Move the average by a tenth of the way to the weights, and take in parameters that have their first gradient.

        Args:
            groups: The optimizer's param groups.
            again: Whether to move what the average holds already; ``compare`` may have done so.

        Returns:
            Whether there were such parameters.
        """
        joined = False
        for group in groups:
            held = group.setdefault(KEY, {})
            for index, parameter in enumerate(group["params"]):
                weights = local(parameter.detach())
                if index in held:
                    if again:
                        held[index].lerp_(weights.to(held[index].dtype), 1 - MEMORY)
                elif parameter.grad is not None:
                    held[index] = weights.to(_kept_in(weights), copy=True)
                    joined = True
        return joined

    def begin(self, groups: Groups, steps: Steps, factor: float) -> None:
        """Make the first steps, and let the average begin at the weights before them.

        Args:
            groups: The optimizer's param groups.
            steps: The displacement of each parameter that has one. Its memory becomes that of the average.
            factor: The factor to make the steps with.
        """
        for number, index, step in steps:
            weights = local(groups[number]["params"][index].detach())
            high = step.to(_kept_in(weights))
            for theta, move in pieces(weights, high):
                before = theta.to(move.dtype, copy=True)
                theta.copy_(before + move * factor)
                move.copy_(before)
            groups[number].setdefault(KEY, {})[index] = high

    def restart(self, groups: Groups) -> None:
        """Let the average begin anew at the present weights."""
        for parameter, average in self._pairs(groups):
            average.copy_(local(parameter.detach()))

    def compare(self, groups: Groups, *, follow: bool, like: Tensor) -> Tensor:
        """Compare the movement from the average with the gradient.

        Args:
            groups: The optimizer's param groups.
            follow: Whether to move the average by a tenth of the way to the weights in the same pass over them.
            like: A tensor of the dtype and device of the result.

        Returns:
            <g, e>, |g|^2 and |e|^2 for the gradient g and the movement e, over all parameters and ranks.
        """
        along: Summands = {}
        steepness: Summands = {}
        length: Summands = {}
        for parameter, average in self._pairs(groups):
            shards, weights = shards_of(parameter), local(parameter.detach())
            whole = [weights, average]
            if parameter.grad is not None:
                whole.append(local(parameter.grad.detach()).to_dense())
            for theta, mean, *grad in pieces(*whole):
                movement = theta - mean
                length.setdefault(shards, []).append(dot(movement, movement))
                for part in grad:
                    along.setdefault(shards, []).append(dot(part, movement))
                    steepness.setdefault(shards, []).append(dot(part, part))
                if follow:
                    mean.add_(movement, alpha=1 - MEMORY)
        return torch.stack([summed_over_ranks(sums, like=like) for sums in (along, steepness, length)])

    def squared_length(self, groups: Groups, *, like: Tensor) -> Tensor:
        """Return |e|^2 for the movement e from the average, over all parameters and ranks."""
        sums: Summands = {}
        for parameter, average in self._pairs(groups):
            own = sums.setdefault(shards_of(parameter), [])
            for theta, mean in pieces(local(parameter.detach()), average):
                movement = theta - mean
                own.append(dot(movement, movement))
        return summed_over_ranks(sums, like=like)

    def movements(self, groups: Groups) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the number of the group, the place of the parameter in it, and its movement from the average."""
        for number, index, average in self.averages(groups):
            yield number, index, local(groups[number]["params"][index].detach()) - average

    def averages(self, groups: Groups) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the number of the group, the place of the parameter in it, and its average."""
        for number, group in enumerate(groups):
            for index, average in group.get(KEY, {}).items():
                yield number, index, average

    def scale_movement(self, groups: Groups, factor: float | Tensor) -> None:
        """Move the weights, so that their movement from the average is ``factor`` times the present one.

        Args:
            groups: The optimizer's param groups.
            factor: 1 leaves the weights as they are, 0 takes them back to the average.
        """
        for parameter, average in self._pairs(groups):
            for theta, mean in pieces(local(parameter.detach()), average):
                theta.copy_(mean + (theta - mean) * factor)  # torch's lerp rounds in between

    def adopt(self, groups: Groups) -> None:
        """Move an average that was loaded to the device and dtype of its parameters.

        Raises:
            OptimizerError: The average belongs to parameters of other shapes.
        """
        for number, index, average in list(self.averages(groups)):
            weights = local(groups[number]["params"][index].detach())
            if weights.shape != average.shape:
                raise OptimizerError(
                    f"the loaded state holds average weights of shape {tuple(average.shape)} for parameter {index} of "
                    f"group {number}, which has shape {tuple(weights.shape)}; load the state of an optimizer over this "
                    "network"
                )
            groups[number][KEY][index] = average.to(weights.device, _kept_in(weights))

    def _pairs(self, groups: Groups) -> list[tuple[Any, Tensor]]:
        return [(groups[number]["params"][index], average) for number, index, average in self.averages(groups)]


def _kept_in(weights: Tensor) -> torch.dtype:
    return KEPT_IN.get(weights.dtype, weights.dtype)


def total_squared_length(groups: Groups, tensors: Steps, *, like: Tensor) -> Tensor:
    """Return the squared length of tensors of the parameters, over all parameters and ranks."""
    sums: Summands = {}
    for number, index, values in tensors:
        own = sums.setdefault(shards_of(groups[number]["params"][index]), [])
        own += [dot(piece, piece) for (piece,) in pieces(values)]
    return summed_over_ranks(sums, like=like)


def usual_weights(weights: Steps) -> Iterator[tuple[int, int, Tensor]]:
    """Yield weights as large as PyTorch initialises those of linear and convolutional layers: 1 / sqrt(3 fan-in)."""
    for number, index, values in weights:
        fan_in = max(values[:1].numel(), 1) if values.ndim else 1
        yield number, index, torch.full_like(values, (3 * fan_in) ** -0.5)

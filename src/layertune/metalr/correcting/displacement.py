r"""Measure an optimizer's step exactly, apply it with a factor for each layer, and correct it later.

A difference of weights, theta_after - theta_before, loses most of its digits where a step is small against the weights:
in float32 at learning rates below about 1e-5. The step is therefore made on a copy of the weights at 2^k times the
learning rate, which loses nothing because steps are linear in the rate:

    D = (theta - 2^k lr u) - theta = -2^k lr u,        theta' = theta + scale 2^-k D

Weights are rounded once, as in the optimizer's own step, and the optimizer's own weights never hold the large step.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layertune.errors import OptimizerError
from layertune.rates.stand_in import StandIn

__all__ = ["Displacement", "Steps", "exponent_for", "local", "measured_steps"]

Groups = Sequence[dict[str, Any]]
Sections = Sequence[Sequence[int]]
Steps = Iterable[tuple[int, int, Tensor]]
"""Triples of the number of a param group, the place of a parameter in it, and a displacement of this parameter."""

EXPONENT = 24  # 2^24: the relative precision of float32, so that steps of 1e-7 of the weights keep their digits
HALF_EXPONENT = 8  # float16 ends at 65504
LOW_PRECISION = (torch.float16, torch.bfloat16)


class _Moving(NamedTuple):
    number: int
    place: int
    parameter: Tensor
    copy: Tensor


class Displacement:
    """Keep the displacement of the last step until it is learned from, in one buffer the size of the parameters.

    It lives in the param groups as ``group["meta_step"]``, with the ``lr`` of the step, the ``unit`` 2^-k and the
    ``displacement`` D by the parameter's place in the group. It is saved with the optimizer, so a resumed run goes on
    exactly. Version 0.1 saved no ``unit``, and as displacement the step as it was applied, scale 2^-k D.
    """

    def __init__(self) -> None:
        self._copies: dict[int, nn.Parameter] = {}
        self._moving: list[_Moving] = []
        self._unit = 1.0

    def start(self, groups: Groups, stand_in: StandIn, *, exponent: int) -> None:
        """Let the stand-in make its step on copies of the parameters that have a gradient.

        Args:
            groups: The optimizer's param groups.
            stand_in: The stand-in that is about to make the step.
            exponent: The whole number k. The step is made at 2^k times the learning rate.
        """
        self._moving = [
            _Moving(number, index, parameter, self._copy_of(parameter))
            for number, group in enumerate(groups)
            for index, parameter in enumerate(group["params"])
            if parameter.grad is not None
        ]
        if self._moving:
            values = [local(moving.parameter.detach()) for moving in self._moving]
            torch._foreach_copy_([local(moving.copy.detach()) for moving in self._moving], values)
        self._unit = 2.0**-exponent
        stand_in.multiply_lrs([2.0**exponent] * len(groups))
        stand_in.substitute({(number, index): copy for number, index, _, copy in self._moving})

    def finish(self, groups: Groups, sections: Sections, scales: Tensor | None) -> None:
        """Apply the step to the parameters and put its displacement into the groups.

        Args:
            groups: The optimizer's param groups.
            sections: The section of each parameter, by group.
            scales: One factor for each section, or ``None`` to take the copies' values bit for bit.
        """
        amounts = {} if scales is None else _by_dtype(self._unit * scales, groups)
        for number, index, parameter, copy in self._moving:
            theta, step = local(parameter.detach()), local(copy.detach())
            if scales is None:
                displacement = step - theta
                theta.copy_(step)
                step.copy_(displacement)
            else:
                _advance(theta, step.sub_(theta), amounts[theta.dtype][sections[number][index]])
            self._hold(groups[number], index, step)
        self._moving = []

    def measure(self, groups: Groups) -> None:
        """Put the displacement of the step into the groups, and leave the parameters where they were."""
        for number, index, parameter, copy in self._moving:
            self._hold(groups[number], index, local(copy.detach()).sub_(local(parameter.detach())))
        self._moving = []

    def correct(self, groups: Groups, sections: Sections, applied: Tensor, corrected: Tensor) -> None:
        """Replace the applied step by one with other factors: theta += (corrected - applied) D.

        The step is taken back first, which gives the weights from before to the last bit in nearly all cases. The
        corrected weights are then rounded once, as if the step had been made so at once.

        Args:
            groups: Param groups with a measured step.
            sections: The section of each parameter, by group.
            applied: The factor that D was applied with, for each section.
            corrected: The factor to apply it with, for each section.
        """
        back, forth = _by_dtype(-applied, groups), _by_dtype(corrected, groups)
        for number, index, step in measured_steps(groups):
            theta, section = local(groups[number]["params"][index].detach()), sections[number][index]
            _advance(theta, step, back[theta.dtype][section])
            _advance(theta, step, forth[theta.dtype][section])

    def forget(self, groups: Groups) -> None:
        """Drop the measured step. Its memory serves the next one."""
        self._moving = []  # of a step that raised
        for group in groups:
            group.pop("meta_step", None)

    def adopt(self, groups: Groups) -> None:
        """Move a measured step that was loaded to the device and dtype of its parameters.

        Raises:
            OptimizerError: The step belongs to parameters of other shapes.
        """
        for number, index, step in measured_steps(groups):
            theta = local(groups[number]["params"][index].detach())
            if theta.shape != step.shape:
                raise OptimizerError(
                    f"the loaded state holds a step of shape {tuple(step.shape)} for parameter {index} of group "
                    f"{number}, which has shape {tuple(theta.shape)}; load the state of an optimizer over this network"
                )
            groups[number]["meta_step"]["displacement"][index] = step.to(theta.device, theta.dtype)

    def _hold(self, group: dict[str, Any], index: int, step: Tensor) -> None:
        held = group.setdefault("meta_step", {"lr": _own(group["lr"]), "unit": self._unit, "displacement": {}})
        held["displacement"][index] = step

    def _copy_of(self, parameter: Tensor) -> nn.Parameter:
        copy = self._copies.get(id(parameter))
        if copy is None or not _alike(copy, parameter):
            copy = self._copies[id(parameter)] = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
            for name, value in vars(parameter).items():  # an optimizer may ask for attributes of its parameters
                vars(copy).setdefault(name, value)
        return copy


def exponent_for(groups: Groups) -> int:
    """Return k, so that a step at 2^k times the learning rate is exact and does not overflow."""
    dtypes = {parameter.dtype for group in groups for parameter in group["params"]}
    return HALF_EXPONENT if torch.float16 in dtypes else EXPONENT


def measured_steps(groups: Groups) -> list[tuple[int, int, Tensor]]:
    """Return the number of the group, the place of the parameter in it, and the displacement, for each parameter."""
    return [
        (number, index, step)
        for number, group in enumerate(groups)
        for index, step in group.get("meta_step", {}).get("displacement", {}).items()
    ]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a distributed tensor, and any other tensor itself."""
    # By its method: importing DTensor takes a second, and nobody has one who has not imported it.
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard


def _by_dtype(amounts: Tensor, groups: Groups) -> dict[torch.dtype, Tensor]:
    """Convert the amounts once for each dtype of the parameters. Those of few bits are moved in float32."""
    dtypes = {parameter.dtype for group in groups for parameter in group["params"]}
    return {dtype: amounts.to(torch.float32 if dtype in LOW_PRECISION else dtype) for dtype in dtypes}


def _advance(theta: Tensor, step: Tensor, amount: Tensor) -> None:
    """Add amount x step to theta, rounded once. Nothing waits for the device."""
    if theta.dtype in LOW_PRECISION:
        theta.copy_(torch.addcmul(theta.float(), step.float(), amount))
    else:
        theta.addcmul_(step, amount)


def _alike(one: Tensor, other: Tensor) -> bool:
    a, b = local(one.detach()), local(other.detach())
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _own(lr: float | Tensor) -> float | Tensor:
    return lr.detach().clone().reshape(()) if isinstance(lr, Tensor) else lr

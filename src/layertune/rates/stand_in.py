"""A stand-in that makes one step of an optimizer in its place."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["StandIn"]

HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
# A learning-rate scheduler leaves a bound `step` on the instance, which would step the optimizer itself.
NOT_COPIED = ("param_groups", "state", "step", "__deepcopy__", *HOOKS)


class StandIn:
    """Make one step of an optimizer in its place, with other learning rates and, where asked, on other parameters.

    A step hook may replace the object that ``step`` runs on. The stand-in is an object of the same class. It shares the
    optimizer's state but has its own param groups, and only these groups are changed. The optimizer's groups keep their
    learning rates during the step, and nothing has to be restored if the step raises an error.

    Args:
        optimizer: The optimizer to make a step for.
        owner: The object whose step hooks the stand-in leaves out. Otherwise an optimizer whose step calls its parent
            class's step would run these hooks a second time.

    Attributes:
        optimizer: The object to run ``step`` on.
    """

    def __init__(self, optimizer: Optimizer, owner: object) -> None:
        self._real = optimizer
        self._attributes = {name: value for name, value in vars(optimizer).items() if name not in NOT_COPIED}
        self._originals: dict[Tensor, Tensor] = {}
        self.optimizer: Optimizer = object.__new__(type(optimizer))
        vars(self.optimizer).update(self._attributes)
        self.optimizer.param_groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
        self._entries = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.state = optimizer.state
        for name in HOOKS:
            hooks = getattr(optimizer, name)
            others = {key: hook for key, hook in hooks.items() if getattr(hook, "__self__", None) is not owner}
            setattr(self.optimizer, name, type(hooks)(others))

    def multiply_lrs(self, factors: Sequence[float]) -> None:
        """Set each group's ``lr`` to the optimizer's present one times a factor.

        A tensor ``lr`` is replaced, not changed in place, because several groups may share one tensor.

        Args:
            factors: One factor for each param group.
        """
        for group, own, factor in zip(self.optimizer.param_groups, self._real.param_groups, factors, strict=True):
            params = group["params"]
            group.clear()  # a closure may have changed the optimizer's groups
            group.update(own, params=params, lr=own["lr"] * factor)
        self._entries = [dict(group) for group in self.optimizer.param_groups]

    def substitute(self, copies: Mapping[tuple[int, int], Tensor]) -> None:
        """Make the step on copies of parameters, with the parameters' gradients and state.

        Args:
            copies: A copy for each parameter to replace, by the number of its group and its place in the group.
        """
        state = self.optimizer.state = self._real.state.copy()
        for (number, index), copy in copies.items():
            parameter = self._real.param_groups[number]["params"][index]
            self.optimizer.param_groups[number]["params"][index] = copy
            self._originals[copy] = parameter
            copy.grad = parameter.grad
            if parameter in state:
                state[copy] = state.pop(parameter)

    def hand_back(self) -> None:
        """Give the optimizer what the step has written: group entries, state, gradients and attributes."""
        for own, group, before in zip(self._real.param_groups, self.optimizer.param_groups, self._entries, strict=True):
            own.update(_changed(group, before))
        for copy, parameter in self._originals.items():
            parameter.grad, copy.grad = copy.grad, None
        if self.optimizer.state is not self._real.state:
            self._real.state.update({self._originals.get(key, key): held for key, held in self.optimizer.state.items()})
        attributes = {name: value for name, value in vars(self.optimizer).items() if name not in NOT_COPIED}
        vars(self._real).update(_changed(attributes, self._attributes))


def _changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in now.items() if key not in before or before[key] is not value}

"""A small copy of an optimizer, to try what its steps are like."""

import copy
import inspect
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["RATES", "Trial"]

RATES = (1.0, 1e-4, 10.0, 1e-2, 1.0, 1e-4, 10.0, 1.0)  # of the steps, times lr; eight, since Lookahead waits for six
WARM_LR = 1e-3  # where a warm-up starts from 0
WIDTH = 8  # of the parameters in each dimension, at most
HOST_KEYS = ("params", "param_names", "lr", "initial_lr", "layer", "depth", "name")  # do not change a step


class Trial:
    """Hold a deep copy of an optimizer with its settings and state, over small parameters and without hooks.

    It has one parameter for each shape, up to 8 in each dimension, and each set of settings in the param groups.

    Args:
        optimizer: The optimizer to copy. It is not changed.

    Attributes:
        optimizer: The copy of the optimizer, which steps in the trial.
        sets_lr: Whether a step has changed the learning rates.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._small: dict[int, nn.Parameter] = {}
        self.sets_lr = False
        groups = self._groups(optimizer)
        self.optimizer: Optimizer = object.__new__(type(optimizer))
        for name, value in vars(optimizer).items():
            # A learning-rate scheduler leaves a bound `step` on the instance, which would step the optimizer itself.
            if name not in ("param_groups", "state", "step", "__deepcopy__") and not name.endswith("_hooks"):
                vars(self.optimizer)[name] = _copied(value, self._small)
        for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            setattr(self.optimizer, name, OrderedDict())
        self.optimizer.param_groups = groups
        self.optimizer.state = defaultdict(dict)
        for parameter, held in optimizer.state.items():
            small = self._small.get(id(parameter))
            if small is not None and small not in self.optimizer.state:
                self.optimizer.state[small] = _narrowed(held, parameter, small)

    def steps(self) -> list[tuple[Tensor, Tensor]]:
        """Make a step at each of ``RATES``.

        Returns:
            Pairs of a tensor and another one of the size that its rounding errors come from: after each step the
            displacement and the weight of each parameter, and twice each entry of its state.
        """
        groups = self.optimizer.param_groups
        weights = [parameter for group in groups for parameter in group["params"]]
        rates, seen = [group["lr"] for group in groups], []
        for number, factor in enumerate(RATES):
            lrs = [rate * factor for rate in rates]
            for group, lr in zip(groups, lrs, strict=True):
                group["lr"] = lr
            before = [weight.detach().clone() for weight in weights]
            self._step(weights, number)
            self.sets_lr |= any(group["lr"] is not lr for group, lr in zip(groups, lrs, strict=True))
            seen += [(weight.detach() - old, old) for weight, old in zip(weights, before, strict=True)]
            seen += [(value, value) for weight in weights for value in _numbers(self.optimizer.state.get(weight, {}))]
        return seen

    def _step(self, weights: list[Tensor], number: int) -> None:
        def closure() -> Tensor:
            for place, weight in enumerate(weights):
                weight.grad = _noise(weight.shape, weight, seed=1000 * number + place)
            return torch.ones(())

        needed = inspect.signature(type(self.optimizer).step).parameters.get("closure")
        if needed is not None and needed.default is inspect.Parameter.empty:
            self.optimizer.step(closure)  # type: ignore[arg-type]  # torch means a tensor or a number
        else:
            closure()
            self.optimizer.step()

    def _groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {}
        for group in optimizer.param_groups:
            settings = {key: value for key, value in group.items() if not key.startswith("meta_")}
            step_settings = {key: value for key, value in settings.items() if key not in HOST_KEYS}
            for parameter in group["params"]:
                shape = tuple(min(size, WIDTH) for size in parameter.shape)
                key = repr((shape, parameter.device, step_settings))
                if key not in groups:
                    lr = group["lr"] + (0.0 if float(group["lr"]) else WARM_LR)
                    own = {name: value for name, value in settings.items() if name not in ("params", "param_names")}
                    small = _small_parameter(parameter, shape, seed=len(groups))
                    groups[key] = {**copy.deepcopy(own), "params": [small], "lr": lr}
                self._small[id(parameter)] = groups[key]["params"][0]
        return list(groups.values())


def _small_parameter(parameter: Tensor, shape: tuple[int, ...], *, seed: int) -> nn.Parameter:
    small = nn.Parameter(_noise(shape, parameter, seed=seed))
    for name, value in vars(parameter).items():  # an optimizer may ask for attributes of its parameters
        vars(small).setdefault(name, value)
    return small


def _noise(shape: tuple[int, ...], like: Tensor, *, seed: int) -> Tensor:
    """Draw on the CPU, the same on each device. float64 shows a dependence on lr that float32 would hide."""
    dtype = torch.complex128 if like.is_complex() else torch.float64
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return noise.to(like.device, torch.float32 if like.device.type == "mps" else dtype)


def _copied(value: Any, small: dict[int, nn.Parameter]) -> Any:
    try:
        return copy.deepcopy(value, dict(small))
    except Exception:  # noqa: BLE001 - process groups, generators and the like say so in errors of many kinds
        return value


def _narrowed(held: Any, parameter: Tensor, small: Tensor) -> Any:
    """Cut a parameter's state to the size of the small one. A state that cannot be cut starts anew."""
    narrow: dict[str, Any] = {}
    for key, value in held.items() if isinstance(held, dict) else ():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
            cut = value[tuple(slice(0, size) for size in small.shape)]
            floating = cut.is_floating_point() or cut.is_complex()
            narrow[key] = cut.to(small.dtype if floating else cut.dtype, copy=True)
        elif isinstance(value, Tensor) and value.numel() > 1:
            return {}
        else:
            narrow[key] = copy.deepcopy(value)
    return narrow


def _numbers(held: Any) -> list[Tensor]:
    """Return the tensors and numbers in a state, in a fixed order."""
    values = [held[key] for key in sorted(held, key=str)] if isinstance(held, dict) else []
    numbers = [value for value in values if isinstance(value, Tensor | int | float)]
    tensors = [torch.as_tensor(value).detach() for value in numbers]
    return [
        (torch.view_as_real(one) if one.is_complex() else one).to("cpu", torch.float64, copy=True) for one in tensors
    ]

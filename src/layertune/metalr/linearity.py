"""Is an optimizer's step linear in its learning rate? Only then can a step be corrected after the fact."""

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.errors import OptimizerError

__all__ = ["require_linear_step"]

# ASGD deviates too little in a short trial to be seen, and grows; the others are here so that the message is certain.
NOT_LINEAR = {"ASGD", "LBFGS", "LaProp", "MADGRAD", "RMSpropTF", "Rprop"}
WARM_LR = 1e-3  # for the trial, where a warm-up starts from 0
TOLERANCE = 1e-3  # far above float32 rounding of a step, far below any real dependence on lr


def require_linear_step(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose displacement is not proportional to ``lr``.

    Known ones are refused by name; any other is tried on a scrap parameter: three steps, then from one state a step
    at lr and one at lr / 2. The optimizer itself, its state and its hooks are not touched.

    Raises:
        OptimizerError: the step is not linear in ``lr``, or another optimizer within this one makes it.
    """
    name = type(optimizer).__name__
    inner = [type(value).__name__ for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    if inner:
        raise OptimizerError(
            f"{name} hands its step to the {inner[0]} within it; attach MetaLR to that one, if {name} moves no "
            "parameter itself"
        )
    if name in NOT_LINEAR or not _halving_halves(optimizer):
        raise OptimizerError(
            f"{name}'s step is not proportional to its learning rate, so MetaLR cannot correct it; use SGD, Adam, "
            "AdamW, RMSprop, Adagrad, NAdam, RAdam, Lion or another whose step is lr times a direction"
        )


def _halving_halves(optimizer: Optimizer) -> bool:
    group = max((group for group in optimizer.param_groups if group["params"]), key=lambda group: float(group["lr"]))
    group = group | {"lr": group["lr"] + (0.0 if float(group["lr"]) else WARM_LR)}
    with torch.enable_grad():
        scrap, weight = _scrap_optimizer(optimizer, group)
        for seed in range(3):
            _step(scrap, weight, seed)
        start, settings, state = weight.detach().clone(), _settings(scrap), copy.deepcopy(scrap.state[weight])
        whole = _step(scrap, weight, 3)
        weight.data.copy_(start)
        scrap.param_groups[0].update(settings, lr=settings["lr"] / 2)
        scrap.state[weight] = state
        half = _step(scrap, weight, 3)
    return bool(whole.norm() > 0 and (whole - 2 * half).norm() <= TOLERANCE * whole.norm())


def _scrap_optimizer(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Optimizer, nn.Parameter]:
    """The same optimizer with the same settings over one small parameter of its own, and no hooks."""
    like = group["params"][0]
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    weight = nn.Parameter(_noise(17, dtype).to(like.device))
    scrap: Optimizer = object.__new__(type(optimizer))
    # A learning-rate scheduler leaves a bound `step` on the instance, which would step the optimizer itself.
    scrap.__dict__.update({key: value for key, value in vars(optimizer).items() if key != "step"})
    settings = {key: value for key, value in group.items() if not key.startswith("meta_")}
    scrap.param_groups = [copy.deepcopy({**settings, "params": [], "param_names": []}) | {"params": [weight]}]
    scrap.state = defaultdict(dict)
    scrap._optimizer_step_pre_hooks = OrderedDict()
    scrap._optimizer_step_post_hooks = OrderedDict()
    return scrap, weight


def _settings(scrap: Optimizer) -> dict[str, Any]:
    return copy.deepcopy({key: value for key, value in scrap.param_groups[0].items() if key != "params"})


def _step(scrap: Optimizer, weight: nn.Parameter, seed: int) -> Tensor:
    before = weight.detach().clone()
    weight.grad = _noise(seed, weight.dtype).to(weight.device)
    scrap.step()
    return (weight - before).detach()


def _noise(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)

"""Whether an optimizer's step is proportional to its learning rate. Only then can a step be corrected afterwards."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr.correcting.displacement import Displacement
from layertune.metalr.trial import RATES, Trial
from layertune.rates.attachment import LRMultiplier
from layertune.rates.stand_in import StandIn
from layertune.restoring import cuda_devices_of, kept_random_state, seed_generators

__all__ = ["require_linear_step"]

EXPONENTS = (24, 12)  # alternating, since a state that grows with lr could hide behind one
TOLERANCE = 1e-3  # far below any real dependence on lr
LINEAR_OPTIMIZERS = (
    "SGD, Adam, AdamW, RMSprop, Adagrad, NAdam, RAdam, Lion or another optimizer whose step is lr times a direction"
)
REPLACEMENTS = {
    "ASGD": "SGD",
    "Adafactor": "Adafactor with scale_parameter=False, relative_step=False",
    "LaProp": "AdamW",
    "Lars": "Lars with trust_clip=False",
    "LARC": "LARS, which does not clip the trust ratio",
    "Lookahead": "the optimizer within it",
    "MADGRAD": "SGD with momentum, or AdamW",
    "Muon": "torch.optim.Muon for the matrices and AdamW in a second optimizer for the rest",
    "RMSpropTF": "torch.optim.RMSprop",
    "Rprop": "SGD",
}


def require_linear_step(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose displacement is not proportional to ``lr``.

    The optimizer is tried on deep copies: one makes its steps as it is, the other as ``MetaLR`` would make them, at
    rates from 1e-4 to 10 times ``lr``, on one small parameter of each shape and group. Both must end with the same
    weights and the same state. The optimizer itself, its counters, its hooks and the random state stay as they are.

    Raises:
        OptimizerError: The step is not linear in ``lr``, another optimizer within this one makes it, or the optimizer
            cannot be tried. The message names an optimizer to use instead.
    """
    name = type(optimizer).__name__
    inner = [type(value).__name__ for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    if inner:
        raise OptimizerError(
            f"{name} hands its step to the {inner[0]} within it; attach MetaLR to that one, if {name} moves no "
            f"parameter itself, or use the {inner[0]} without {name}"
        )
    if _keeps_ids(optimizer):
        raise OptimizerError(
            f"{name} knows its parameters by their id(), so MetaLR cannot make its steps on copies; use "
            f"{LINEAR_OPTIMIZERS}"
        )
    fault = _fault(optimizer)
    if fault:
        raise OptimizerError(f"{name} {fault}, so MetaLR cannot correct it; use {_replacement(optimizer)}")


def _replacement(optimizer: Optimizer) -> str:
    if any(group.get("corrected_weight_decay") for group in optimizer.param_groups):
        return "the optimizer without corrected_weight_decay, for instance adamw in place of adamc"
    return REPLACEMENTS.get(type(optimizer).__name__, LINEAR_OPTIMIZERS)


def _keeps_ids(optimizer: Optimizer) -> bool:
    ids = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    containers = (value for value in vars(optimizer).values() if isinstance(value, dict | set | list | tuple))
    return any(isinstance(item, int) and item in ids for container in containers for item in container)


def _fault(optimizer: Optimizer) -> str | None:
    """Return what keeps the optimizer's steps from being corrected, or ``None``."""
    try:
        with _same_conditions(optimizer):
            plain = Trial(optimizer)
            references = plain.steps()
        with _same_conditions(optimizer):
            trial = Trial(optimizer)
            correction = _CorrectedSteps(trial.optimizer)
            results = trial.steps()
            correction.detach()  # else hooks and optimizer keep each other, and the trial's memory, alive
    except OptimizerError:
        raise
    except Exception as error:
        raise OptimizerError(
            f"{type(optimizer).__name__} cannot be tried on a small copy, which MetaLR does to see whether its step is "
            f"proportional to its learning rate ({type(error).__name__}: {error}); use {LINEAR_OPTIMIZERS}"
        ) from error
    if correction.count != len(RATES):
        return "does not call its step hooks"
    if plain.sets_lr:
        return "sets its own learning rate"
    if not all(_close(a, b) for a, b in zip(references, results, strict=True)):
        return "makes steps that are not proportional to its learning rate"
    return None


@contextmanager
def _same_conditions(optimizer: Optimizer) -> Iterator[None]:
    """Give both trials the same random numbers, restore the generators at the end, compile nothing, and be quiet."""
    devices = cuda_devices_of(parameter for group in optimizer.param_groups for parameter in group["params"])
    # Kron compiles its steps for each shape, which takes minutes. Importing the compiler takes seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with kept_random_state(devices), torch.enable_grad(), eager, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first real step gives the same warnings
        seed_generators(0, devices)
        yield


class _CorrectedSteps(LRMultiplier):
    """Make each step as ``MetaLR`` does, with all factors 1."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.count = 0
        self._displacement = Displacement()

    def _prepare_step(self, stand_in: StandIn) -> None:
        with torch.no_grad():
            self._displacement.start(self.optimizer.param_groups, stand_in, exponent=EXPONENTS[self.count % 2])

    def _finish_step(self) -> None:
        self.count += 1
        groups = self.optimizer.param_groups
        with torch.no_grad():
            sections = [[0] * len(group["params"]) for group in groups]
            self._displacement.finish(groups, sections, torch.ones(1, device=groups[0]["params"][0].device))
        self._displacement.forget(groups)


def _close(reference: tuple[Tensor, Tensor], result: tuple[Tensor, Tensor]) -> bool:
    """Compare a value. Rounding errors may be those of float32, in which some optimizers compute."""
    rounding = 8 * torch.finfo(torch.float32).eps * reference[1].norm()
    return bool((reference[0] - result[0]).norm() <= TOLERANCE * reference[0].norm() + rounding)

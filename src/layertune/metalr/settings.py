"""What MetaLR asks of its settings and of the optimizer that it attaches to."""

from collections.abc import Callable, Sequence

from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr.linearity import require_linear_step
from layertune.metalr.rules import HYPER_LR, RULES
from layertune.rates.attachment import require_single_multiplier

__all__ = ["check_layers", "check_meta_gradient", "check_optimizer", "check_settings", "usual_hyper_lr"]


def check_settings(
    *,
    hyper_lr: float,
    rule: str,
    min_lr: float,
    max_lr: float | None,
    max_change: float,
    every: int,
    streaming: bool = False,
) -> None:
    """Refuse a setting that is out of range.

    Raises:
        OptimizerError: naming the setting, its range and what came.
    """
    numbers = {"hyper_lr": hyper_lr, "min_lr": min_lr, "max_lr": max_lr, "max_change": max_change, "every": every}
    for name, value in numbers.items():
        if not isinstance(value, int | float) and not (name == "max_lr" and value is None):
            raise OptimizerError(f"{name} must be a number, not {value!r}")
    checks: list[tuple[bool, Callable[[], str]]] = [
        (0 <= hyper_lr < float("inf"), lambda: f"hyper_lr must be finite and >= 0, not {hyper_lr}"),
        (rule in RULES, lambda: f"rule must be one of {', '.join(RULES)}, not {rule!r}"),
        (min_lr >= 0, lambda: f"min_lr must be >= 0, not {min_lr}"),
        (max_lr is None or max_lr > min_lr, lambda: f"max_lr must be above min_lr = {min_lr}, not {max_lr}"),
        (max_change > 1, lambda: f"max_change must be above 1, not {max_change}"),
        (isinstance(streaming, bool), lambda: f"streaming must be True or False, not {streaming!r}"),
        (every % 1 == 0 and every >= 1, lambda: f"every must be a whole number from 1, not {every}"),
    ]
    for holds, message in checks:
        if not holds:
            raise OptimizerError(message())


def usual_hyper_lr(hyper_lr: float | None, rule: str) -> float:
    """The step size of the learning rates that was given, or else the one that suits the rule.

    Raises:
        OptimizerError: none was given, and for this rule there is no usual one.

    Example:
        >>> usual_hyper_lr(None, "cosine"), usual_hyper_lr(0.2, "cosine")
        (0.05, 0.2)
    """
    if hyper_lr is None and rule == "additive":
        raise OptimizerError(
            'rule="additive" needs a hyper_lr that fits the scale of loss and gradients, as hyper_lr=1e-3; the other '
            "rules have one of their own"
        )
    return HYPER_LR.get(rule, 0.0) if hyper_lr is None else hyper_lr


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose steps cannot be learned from.

    Raises:
        OptimizerError: its rates are multiplied already, it trains flattened shards, or its step is not linear in
            ``lr``.
    """
    require_single_multiplier(optimizer)
    if any(hasattr(p, "_fsdp_flattened") for group in optimizer.param_groups for p in group["params"]):
        raise OptimizerError(
            "these parameters are shards of FullyShardedDataParallel, which do not say what they are shards of, so "
            "each rank would learn rates of its own; shard with torch.distributed.fsdp.fully_shard instead"
        )
    require_linear_step(optimizer)


def check_layers(names: Sequence[str]) -> None:
    """Refuse a single layer.

    Raises:
        OptimizerError: saying how an optimizer comes to have several.
    """
    if len(names) < 2:
        raise OptimizerError(
            "MetaLR learns one rate per layer, and this optimizer has all parameters in one layer; build it from "
            "layertune.param_groups(model, layertune.map_layers(model, example_input), lr=...), or give "
            "layers=map.parameters_of(model)"
        )


def check_meta_gradient(optimizer: Optimizer) -> None:
    """Refuse to learn without a gradient.

    Raises:
        OptimizerError: no parameter has one.
    """
    if all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
        raise OptimizerError(
            "adapt() found no meta gradient; call optimizer.zero_grad() and backward on the meta loss before it"
        )

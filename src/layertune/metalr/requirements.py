"""Checks of the optimizer that MetaLR attaches to."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.metalr.linearity import require_linear_step
from layertune.rates.attachment import require_single_multiplier

__all__ = ["check_layers", "check_meta_gradient", "check_optimizer", "refuse_copy"]


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that MetaLR cannot learn with.

    Raises:
        OptimizerError: Its rates are multiplied already, it trains flattened shards, or its step is not linear in
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
    """Refuse to learn the rate of a single layer.

    Raises:
        OptimizerError: There are fewer than two layers. The message says how to get more.
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
        OptimizerError: No parameter has a gradient.
    """
    if all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
        raise OptimizerError(
            "adapt() found no meta gradient; call optimizer.zero_grad() and backward on the meta loss before it"
        )


def refuse_copy(_: dict[int, Any]) -> Any:
    """Refuse to copy an optimizer with a ``MetaLR``: torch's copy has no hooks, so it would stop learning silently.

    Raises:
        OptimizerError: Always. The message says how to get a second optimizer.
    """
    raise OptimizerError(
        "a deep copy of an optimizer has no hooks, so MetaLR would silently stop learning in the copy; build a second "
        "optimizer, load a copy of this one's state_dict() and attach a MetaLR to it, or call detach() before"
    )

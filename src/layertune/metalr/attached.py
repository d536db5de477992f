"""The optimizers that a ``MetaLR`` is attached to, and how many meta passes each has had."""

from collections.abc import Iterable
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError

__all__ = ["META_PASSES", "attach", "count_meta_pass", "detach", "require_latest"]

META_PASSES = "meta_passes"
"""The key in the first param group. It is saved with the optimizer, so that random numbers go on after a restart."""

_attached: WeakSet[Optimizer] = WeakSet()
_successors: WeakKeyDictionary[Optimizer, ReferenceType[Optimizer]] = WeakKeyDictionary()


def attach(optimizer: Optimizer) -> None:
    """Note that a ``MetaLR`` is attached. It takes over the parameters that it shares with others."""
    for other in _sharing(parameter for group in optimizer.param_groups for parameter in group["params"]):
        _successors[other] = ref(optimizer)
    _successors.pop(optimizer, None)
    _attached.add(optimizer)


def detach(optimizer: Optimizer) -> None:
    """Note that the ``MetaLR`` is detached."""
    _attached.discard(optimizer)


def require_latest(optimizer: Optimizer) -> None:
    """Refuse a step after another ``MetaLR`` has taken over some of the parameters.

    Raises:
        OptimizerError: Both would learn from, correct and clear the gradients of the same parameters.
    """
    if _taken_over(optimizer):
        raise OptimizerError(
            "another MetaLR was attached to an optimizer with some of the same parameters, and each would correct the "
            "other's steps and clear its gradients; train a parameter with one MetaLR, or call detach() on the one "
            "that you no longer need"
        )


def count_meta_pass(parameters: Iterable[Tensor]) -> list[int]:
    """Count one more meta pass for each attached optimizer of these parameters, and return the counts."""
    counts = []
    for optimizer in _sharing(parameters):
        if not _taken_over(optimizer):
            group = optimizer.param_groups[0]
            group[META_PASSES] = group.get(META_PASSES, 0) + 1
            counts.append(group[META_PASSES])
    return sorted(counts)


def _taken_over(optimizer: Optimizer) -> bool:
    successor = _successors[optimizer]() if optimizer in _successors else None
    return successor is not None and successor in _attached


def _sharing(parameters: Iterable[Tensor]) -> list[Optimizer]:
    wanted = {id(parameter) for parameter in parameters}
    return [
        optimizer
        for optimizer in list(_attached)
        if any(id(parameter) in wanted for group in optimizer.param_groups for parameter in group["params"])
    ]

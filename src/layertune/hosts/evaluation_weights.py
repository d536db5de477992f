"""The weights to evaluate, where an optimizer trains others: schedule-free optimizers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from layertune.errors import OptimizerError
from layertune.restoring import kept_random_state

__all__ = ["HasModes", "evaluation_weights", "follow_mode", "mode_of", "renew_statistics"]


@runtime_checkable
class HasModes(Protocol):
    """An optimizer that has a mode for training and one for evaluation, as those of ``schedulefree`` have."""

    def train(self) -> Any:
        """Put the weights to train in place."""

    def eval(self) -> Any:
        """Put the weights to evaluate in place."""


@contextmanager
def evaluation_weights(
    optimizer: Optimizer, model: nn.Module | None = None, batches: Iterable[Tensor] = ()
) -> Iterator[None]:
    """Put the weights that are to be evaluated or saved in place, for the length of a ``with`` block.

    A schedule-free optimizer computes gradients at one point, y, and is evaluated at another, x, the average of its
    weights (Defazio et al., NeurIPS 2024, arXiv:2405.15682). The block calls the optimizer's ``eval()`` at its start
    and ``train()`` at its end. For an optimizer without modes nothing happens, so a loop may use the block with any.

    Batch norms collect their running statistics at y, so they do not fit x. The README of ``schedulefree`` asks for
    some 50 training batches to be run through the network in train mode before an evaluation. Pass them as ``batches``.
    A forward pass costs about a third of a forward and backward pass.

    The optimizer converts y to x and back with rounding. So a run in which weights were evaluated differs from one in
    which they were not, in the last bits.

    Args:
        optimizer: The optimizer.
        model: The network, for the statistics of its batch norms. Its mode is not changed.
        batches: Training inputs, for instance of 50 batches. Default: the statistics stay as they are.

    Raises:
        OptimizerError: There are batches, and no model.

    Example:
        >>> from layertune import make_optimizer
        >>> net = nn.Linear(1, 1, bias=False)
        >>> optimizer = make_optimizer("schedulefree_adamw", net, lr=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     net(torch.ones(1, 1)).square().sum().backward()
        ...     optimizer.step()
        >>> trained = net.weight.item()
        >>> with evaluation_weights(optimizer):
        ...     net.weight.item() == trained
        False
        >>> abs(net.weight.item() - trained) < 1e-6
        True
    """
    if not isinstance(optimizer, HasModes):
        yield
        return
    optimizer.eval()
    try:
        renew_statistics(model, batches)
        yield
    finally:
        optimizer.train()


def renew_statistics(model: nn.Module | None, batches: Iterable[Tensor]) -> int:
    """Run training inputs through a network in train mode, which renews the running statistics of its batch norms.

    Random numbers and the network's modes are as before.

    Args:
        model: The network.
        batches: Training inputs; none are read if no norm has running statistics.

    Returns:
        The number of forward passes.

    Raises:
        OptimizerError: There are batches, and no model.
    """
    if model is None:
        if any(True for _ in batches):
            raise OptimizerError("batches renew the statistics of batch norms, and no model was given; pass the model")
        return 0
    if all(module._buffers.get("running_mean") is None for module in model.modules()):
        return 0
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    model.train()
    passes = 0
    try:
        with torch.no_grad(), kept_random_state(devices):
            for batch in batches:
                model(batch)
                passes += 1
    finally:
        for module, training in modes:
            module.training = training
    return passes


def follow_mode(optimizer: Optimizer, model: nn.Module) -> RemovableHandle:
    """Switch the weights of a schedule-free optimizer with each forward of a model: by whether the model trains.

    It is for hosts that switch the model between training and evaluation and know nothing of the optimizer's modes. The
    statistics of batch norms are not renewed.

    Args:
        optimizer: The optimizer, which must have modes.
        model: The model that the host runs.

    Returns:
        The handle of the model's hook, with ``remove()``.

    Raises:
        OptimizerError: The optimizer has no modes.
    """
    modes = mode_of(optimizer)

    def switch(module: nn.Module, _: Any) -> None:
        if module is model:  # a copy of the model, as for an average of weights, has a copy of the hook
            (modes.train if module.training else modes.eval)()

    return model.register_forward_pre_hook(switch)


def mode_of(optimizer: Optimizer) -> HasModes:
    """Return an optimizer as one that has modes.

    Raises:
        OptimizerError: It has none.
    """
    if not isinstance(optimizer, HasModes):
        raise OptimizerError(
            f"{type(optimizer).__name__} has no train() and eval(), which schedule-free optimizers have"
        )
    return optimizer

"""What the hosts' passes of a meta batch have in common: the loss, its backward pass, and a failure explained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from layertune.errors import MetaBatchError, ModelError
from layertune.hosts.meta_batches import structure

__all__ = ["checked_loss", "explained_failure", "scaled_backward"]


@contextmanager
def explained_failure(step: str, batch: Any, training_batch: Any, advice: str) -> Iterator[None]:
    """Explain an error on a meta batch that does not look like a training batch; other errors pass unchanged.

    Args:
        step: What runs inside the block, for the message, for example ``"the step of MyModule"``.
        batch: The meta batch.
        training_batch: A training batch, to compare with.
        advice: What to do, for the message.

    Raises:
        MetaBatchError: The block fails, and the two batches are made of different things.

    Example:
        >>> try:
        ...     with explained_failure("the step", [1], {"image": 2}, "give another loader"):
        ...         raise KeyError("image")
        ... except MetaBatchError as error:
        ...     print(error)
        the step fails on the meta batch (KeyError: 'image'), which is [int], where a training batch is {image: int}; \
give another loader
    """
    try:
        yield
    except Exception as error:
        came, usual = structure(batch), structure(training_batch)
        if came == usual:
            raise
        raise MetaBatchError(
            f"{step} fails on the meta batch ({type(error).__name__}: {error}), which is {came}, where a training "
            f"batch is {usual}; {advice}"
        ) from error


def checked_loss(loss: Any, step: str, advice: str) -> Tensor:
    """Return a meta loss that has a gradient.

    Args:
        loss: The value that the host's step gave.
        step: What gave it, for the message.
        advice: What to do, for the message.

    Raises:
        ModelError: The value is not a tensor that depends on the parameters.
    """
    if isinstance(loss, Tensor) and loss.requires_grad:
        return loss
    came = "a tensor without a gradient" if isinstance(loss, Tensor) else type(loss).__name__
    raise ModelError(
        f"{step} gave {came} on the meta batch, and MetaLR needs the loss, a tensor that depends on the parameters; "
        f"{advice}"
    )


def scaled_backward(loss: Tensor, scaler: Any) -> Tensor:
    """Run the backward pass of a meta loss with the training's own gradient scale, which stays as it is.

    Args:
        loss: The loss, a tensor without dimensions.
        scaler: The training's ``GradScaler``, or ``None``.

    Returns:
        The factor on the loss, for ``MetaLR.adapt``.
    """
    one = torch.ones((), device=loss.device)
    # Not `get_scale()`, which waits for the device; and `update()` is called by the training step alone.
    scale: Tensor = one if scaler is None else scaler.scale(one)
    (loss * scale).backward()
    return scale

"""The loss of a meta batch, with an engine's own settings."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from layertune.hosts.meta_step import checked_loss, explained_failure, scaled_backward
from layertune_monai.handlers.engine import plain_tensor, prepared_batch

__all__ = ["MetaLoss", "backward_of_meta_batch", "engine_loss"]

MetaLoss = Callable[[Any, Any], Any]
"""A function from an engine and a batch, as its loader yields it, to the loss, a tensor without dimensions."""


def engine_loss(engine: Any, batch: Any) -> Tensor:
    """Compute the loss of a batch with the engine's own ``prepare_batch``, ``inferer`` and ``loss_function``.

    Args:
        engine: A ``SupervisedTrainer``, or an engine with the same attributes.
        batch: The batch, as the loader yields it.
    """
    inputs, targets, args, kwargs = prepared_batch(engine, batch)
    if getattr(engine, "compile", False):  # `SupervisedTrainer` does the same: a compiled network takes plain tensors
        inputs, targets = plain_tensor(inputs), plain_tensor(targets)
    prediction = engine.inferer(inputs, engine.network, *args, **kwargs)
    loss: Tensor = engine.loss_function(prediction, targets).mean()
    return loss


def backward_of_meta_batch(engine: Any, loss_of: MetaLoss, batch: Any) -> Tensor:
    """Run forward and backward pass of a meta batch in the engine's precision.

    Args:
        engine: The engine, within an iteration.
        loss_of: ``engine_loss``, or the user's own function.
        batch: The batch, as the meta loader yields it.

    Returns:
        The factor on the loss in the backward pass: 1, or the scale of the engine's ``GradScaler``.

    Raises:
        MetaBatchError: The loss fails on a batch that does not look like a training batch.
        ModelError: The loss is not a tensor that depends on the parameters.
    """
    scaler = getattr(engine, "scaler", None) if getattr(engine, "amp", False) else None
    precision = torch.autocast("cuda", **engine.amp_kwargs) if scaler is not None else nullcontext()
    step, advice = f"the loss of {type(engine).__name__}", "give a meta_loader whose batches look alike"
    with explained_failure(step, batch, engine.state.batch, advice), precision:
        loss = loss_of(engine, batch)
    return scaled_backward(checked_loss(loss, step, "return it from meta_loss or from the engine's loss"), scaler)

"""The loss of a meta batch, with an engine's own settings."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from layertune import MetaBatchError, ModelError
from layertune.hosts.meta_batches import structure
from layertune_monai.handlers.engine import _plain, _prepared

__all__ = ["MetaLoss", "backward_of_meta_batch", "engine_loss"]

MetaLoss = Callable[[Any, Any], Any]
"""A function from an engine and a batch, as its loader gives it, to the loss, a tensor without dimensions."""


def engine_loss(engine: Any, batch: Any) -> Tensor:
    """The loss of a batch by the engine's own ``prepare_batch``, ``inferer`` and ``loss_function``.

    Args:
        engine: a ``SupervisedTrainer`` or one like it.
        batch: as the loader gives it.
    """
    inputs, targets, args, kwargs = _prepared(engine, batch)
    if getattr(engine, "compile", False):  # as the engine itself does
        inputs, targets = _plain(inputs), _plain(targets)
    prediction = engine.inferer(inputs, engine.network, *args, **kwargs)
    loss: Tensor = engine.loss_function(prediction, targets).mean()
    return loss


def backward_of_meta_batch(engine: Any, loss_of: MetaLoss, batch: Any) -> Tensor:
    """Forward and backward of a meta batch, in the engine's precision.

    Args:
        engine: in an iteration.
        loss_of: ``engine_loss``, or the user's own.
        batch: as the meta loader gives it.

    Returns:
        What the loss was multiplied by for the backward pass: 1, or the scale of the engine's ``GradScaler``.

    Raises:
        MetaBatchError: the loss fails on a batch that does not look like a training batch.
        ModelError: it is no tensor that the parameters have a part in.
    """
    scaler = getattr(engine, "scaler", None) if getattr(engine, "amp", False) else None
    precision = torch.autocast("cuda", **engine.amp_kwargs) if scaler is not None else nullcontext()
    try:
        with precision:
            loss = loss_of(engine, batch)
    except Exception as error:
        trained = structure(engine.state.batch)
        if structure(batch) == trained:
            raise
        raise MetaBatchError(
            f"{type(engine).__name__} cannot make a loss of the meta batch ({type(error).__name__}: {error}), which is "
            f"{structure(batch)}, where a training batch is {trained}; give a meta_loader whose batches look alike"
        ) from error
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        came = "a tensor without a gradient" if isinstance(loss, Tensor) else type(loss).__name__
        raise ModelError(f"the meta loss must be a tensor that depends on the parameters, and is {came}")
    one = torch.ones((), device=loss.device)
    # Not `get_scale()`, which waits for the device. `update()` is the training step's own.
    scale = one if scaler is None else scaler.scale(one)
    (loss * scale).backward()
    return scale

"""The module's own step on a meta batch: its gradients, and no other trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from layertune import MetaBatchError, ModelError
from layertune.hosts.meta_batches import structure
from layertune.restoring import kept_attributes

__all__ = ["backward_of_meta_batch", "check_meta_step", "has_loss"]


def check_meta_step(module: pl.LightningModule) -> None:
    """Refuse a module whose ``training_step`` cannot serve as the meta step.

    Raises:
        ModelError: it optimises by hand or reads batches itself, and has no ``meta_step``.
    """
    if hasattr(module, "meta_step"):
        return
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ModelError(
            f"{name} optimises by hand, so its training_step would step again on the meta batch; give it a "
            "meta_step(batch, batch_idx) that returns the loss, or take MetaLRCallback(streaming=True)"
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ModelError(
            f"training_step of {name} takes an iterator, and a meta batch is one batch; give {name} a "
            "meta_step(batch, batch_idx) that returns the loss, or take MetaLRCallback(streaming=True)"
        )


def backward_of_meta_batch(trainer: pl.Trainer, batch: Any, number: int, training_batch: Any) -> Tensor:
    """Run the module's step on a meta batch, and the backward pass of its loss.

    Precision and wrappers are the strategy's own, as is the way of the batch to its device. What the step logs is
    dropped; what it writes into the module and into the metrics of torchmetrics in it is put back; no hook but those
    of the batch transfer is called.

    Args:
        trainer: in training.
        batch: as it came from the loader.
        number: counts meta batches; the step gets it as ``batch_idx``.
        training_batch: the training batch of this step, to tell what a batch looks like.

    Returns:
        What the loss was multiplied by for the backward pass: 1, or the gradient scale of the precision.

    Raises:
        MetaBatchError: the step fails on a batch that does not look like a training batch.
        ModelError: the step returns no loss that the parameters have a part in.
    """
    module, strategy = trainer.lightning_module, trainer.strategy
    with kept_module(module), torch.enable_grad():
        takes_number = _stand_in(module)
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = strategy.batch_to_device(batch, dataloader_idx=0)
        try:
            output = strategy.training_step(batch, number) if takes_number else strategy.training_step(batch)
        except Exception as error:
            if structure(batch) == structure(training_batch):
                raise
            raise MetaBatchError(
                f"the step of {type(module).__name__} fails on the meta batch ({type(error).__name__}: {error}), which "
                f"is {structure(batch)}, where a training batch is {structure(training_batch)}; give a meta_loader "
                "whose batches look alike, or give the module a meta_step(batch, batch_idx)"
            ) from error
        loss = _loss_of(output, module)
        scale = _gradient_scale(trainer, loss)
        strategy.pre_backward(loss)
        (loss * scale).backward()
    return scale


def has_loss(outputs: Any) -> bool:
    """Whether a step's outputs, as Lightning hands them to callbacks, hold a loss.

    Example:
        >>> has_loss(None), has_loss({"loss": None}), has_loss({"loss": torch.tensor(0.5)})
        (False, False, True)
    """
    return (outputs.get("loss") if isinstance(outputs, dict) else outputs) is not None


@contextmanager
def kept_module(module: pl.LightningModule) -> Iterator[None]:
    """Put back what is written into the module and the modules in it, their containers and metrics included."""
    with kept_attributes(module):
        for part in module.modules():
            if isinstance(part, Metric):
                _clone_state(part)
        yield


def _stand_in(module: pl.LightningModule) -> bool:
    """Until the module's attributes are put back: nothing is logged, and the strategy's next step is the meta step.

    Returns:
        Whether that step takes a ``batch_idx``.
    """
    attributes = vars(module)
    attributes.update(log=_drop, log_dict=_drop)
    own = attributes.get("training_step")
    step = getattr(module, "meta_step", module.training_step)

    def meta_step_once(*args: Any) -> Any:
        # A meta step may well call the training step.
        if own is None:
            del attributes["training_step"]
        else:
            attributes["training_step"] = own
        return step(*args)

    attributes["training_step"] = meta_step_once
    return bool(is_param_in_hook_signature(step, "batch_idx", min_args=2))


def _drop(*_: Any, **__: Any) -> None:
    """In place of ``log``."""


def _clone_state(metric: Metric) -> None:
    # Metrics add to their tensors in place.
    for name, value in metric.metric_state.items():
        if isinstance(value, Tensor):
            setattr(metric, name, value.clone())


def _loss_of(output: Any, module: pl.LightningModule) -> Tensor:
    loss = output.get("loss") if isinstance(output, dict) else output
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        step = "meta_step" if hasattr(module, "meta_step") else "training_step"
        came = "a tensor without a gradient" if isinstance(loss, Tensor) else type(loss).__name__
        raise ModelError(
            f"{step} of {type(module).__name__} gave {came} on the meta batch, and MetaLR needs the loss, a tensor "
            "that depends on the parameters; return it, or give the module a meta_step(batch, batch_idx) that does"
        )
    return loss


def _gradient_scale(trainer: pl.Trainer, loss: Tensor) -> Tensor:
    one = torch.ones((), device=loss.device)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # Not `get_scale()`, which waits for the device. `update()` is the training step's own.
    return one if scaler is None else scaler.scale(one)

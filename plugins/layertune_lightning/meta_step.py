"""The module's own step on a meta batch, which leaves gradients and no other trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from layertune import ModelError
from layertune.hosts.meta_step import checked_loss, explained_failure, scaled_backward
from layertune.restoring import kept_attributes

__all__ = ["backward_of_meta_batch", "check_meta_step", "has_loss"]


def check_meta_step(module: pl.LightningModule) -> None:
    """Refuse a module whose ``training_step`` cannot serve as the meta step.

    Raises:
        ModelError: The module optimises by hand or reads batches itself, and has no ``meta_step``.
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

    Precision and wrappers are the strategy's own, as is the transfer of the batch to its device. Logged values are
    dropped. What the step writes into the module, and into torchmetrics inside it, is put back. Only the hooks of the
    batch transfer are called.

    Args:
        trainer: The Trainer, within a fit.
        batch: The meta batch, as the loader yields it.
        number: The number of the meta batch; the step gets it as ``batch_idx``.
        training_batch: The training batch of this step, to compare the meta batch with.

    Returns:
        The factor on the loss in the backward pass: 1, or the gradient scale of the precision plug-in.

    Raises:
        MetaBatchError: The step fails on a batch that does not look like a training batch.
        ModelError: The step returns no loss that depends on the parameters.
    """
    module, strategy = trainer.lightning_module, trainer.strategy
    name, step = type(module).__name__, "meta_step" if hasattr(module, "meta_step") else "training_step"
    with _restored_module(module):
        takes_number = _install_meta_step(module)
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = strategy.batch_to_device(batch, dataloader_idx=0)
        advice = "give a meta_loader whose batches look alike, or give the module a meta_step(batch, batch_idx)"
        with explained_failure(f"{step} of {name}", batch, training_batch, advice):
            output = strategy.training_step(batch, number) if takes_number else strategy.training_step(batch)
        loss = output.get("loss") if isinstance(output, dict) else output
        advice = "return it, or give the module a meta_step(batch, batch_idx) that does"
        loss = checked_loss(loss, f"{step} of {name}", advice)
        strategy.pre_backward(loss)
        return scaled_backward(loss, getattr(trainer.precision_plugin, "scaler", None))


def has_loss(outputs: Any) -> bool:
    """Return whether a step's outputs, as Lightning hands them to callbacks, contain a loss.

    Example:
        >>> from torch import tensor
        >>> has_loss(None), has_loss({"loss": None}), has_loss({"loss": tensor(0.5)})
        (False, False, True)
    """
    return (outputs.get("loss") if isinstance(outputs, dict) else outputs) is not None


@contextmanager
def _restored_module(module: pl.LightningModule) -> Iterator[None]:
    """Put back the attributes of the module and of the modules in it, with their containers and metrics."""
    with kept_attributes(module):
        for part in module.modules():
            if isinstance(part, Metric):
                _clone_state(part)
        yield


def _install_meta_step(module: pl.LightningModule) -> bool:
    """Drop what the module logs, and let the strategy's next training step run the meta step.

    Both last until the module's attributes are put back.

    Returns:
        Whether the meta step takes a ``batch_idx``.
    """
    attributes = vars(module)
    attributes.update(log=_drop, log_dict=_drop)
    own = attributes.get("training_step")
    step = getattr(module, "meta_step", module.training_step)

    def meta_step_once(*args: Any) -> Any:
        # A meta step may call the training step.
        if own is None:
            del attributes["training_step"]
        else:
            attributes["training_step"] = own
        return step(*args)

    attributes["training_step"] = meta_step_once
    return bool(is_param_in_hook_signature(step, "batch_idx", min_args=2))


def _drop(*_: Any, **__: Any) -> None:
    """Do nothing, in place of ``log``."""


def _clone_state(metric: Metric) -> None:
    # Metrics add to their tensors in place.
    for name, value in metric.metric_state.items():
        if isinstance(value, Tensor):
            setattr(metric, name, value.clone())

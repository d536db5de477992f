"""The forward and backward pass on a meta batch, done as nnU-Net's training step does its own."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import GradScaler, Tensor, nn

from layertune.hosts.meta_step import scaled_backward

__all__ = ["backward_on_meta_batch"]


def backward_on_meta_batch(
    network: nn.Module, loss: Callable[..., Tensor], batch: dict[str, Any], scaler: GradScaler | None
) -> Tensor:
    """Compute the gradients of the loss on a meta batch, with autocast on CUDA only, as in nnU-Net.

    Args:
        network: The network with its DDP wrapper, if it has one, so that the gradients are averaged over all ranks.
        loss: nnU-Net's loss over all outputs of deep supervision.
        batch: ``data`` and ``target`` of nnU-Net's loader.
        scaler: The gradient scaler of the training, or None.

    Returns:
        The factor that the loss was multiplied by, a tensor on the device.
    """
    device = next(network.parameters()).device
    data, target = (_moved(batch[part], device) for part in ("data", "target"))
    with torch.autocast("cuda") if device.type == "cuda" else nullcontext():
        value = loss(network(data), target)
    return scaled_backward(value, scaler)


def _moved(part: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    if isinstance(part, list):
        return [one.to(device, non_blocking=True) for one in part]
    return part.to(device, non_blocking=True)

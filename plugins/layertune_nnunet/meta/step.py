"""The meta batch's forward and backward, as nnU-Net's own training step does it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import GradScaler, Tensor, nn

__all__ = ["backward_of_meta_batch"]


def backward_of_meta_batch(
    network: nn.Module, loss: Callable[..., Tensor], batch: dict[str, Any], scaler: GradScaler | None
) -> Tensor | float:
    """Gradients of the loss on a meta batch; autocast on CUDA only, as in nnU-Net.

    The scaler is asked for its scale and told nothing: an ``update`` would count one step twice, and whether the
    gradients are finite is looked at where they are used.

    Args:
        network: as it is trained, wrapper included: under DDP the wrapper sums the gradients.
        loss: nnU-Net's, over all outputs of deep supervision.
        batch: ``data`` and ``target`` of nnU-Net's loader.
        scaler: of the training, if it has one.

    Returns:
        What the loss was multiplied by; on the device, which nobody waits for.
    """
    device = next(network.parameters()).device
    data, target = (_moved(batch[part], device) for part in ("data", "target"))
    with torch.autocast("cuda") if device.type == "cuda" else nullcontext():
        value = loss(network(data), target)
    scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=device))
    (value * scale).backward()
    return scale


def _moved(part: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    if isinstance(part, list):
        return [one.to(device, non_blocking=True) for one in part]
    return part.to(device, non_blocking=True)

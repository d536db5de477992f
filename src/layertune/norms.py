"""Normalisation layers: statistics that a second forward pass must leave alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["frozen_statistics"]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Put back the buffers that forward passes in train mode move: running statistics and batch counts above all.

    Inside, norms in train mode use batch statistics as ever; what their forward passes do to the running statistics
    is undone bit for bit, also on an exception. So are the power iterations of spectral norms and the buffers of the
    hosts' own layers. Modules in eval mode are not touched.

    Args:
        model: any network, also wrapped.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with frozen_statistics(net):
        ...     _ = net(torch.randn(8, 2))
        >>> net.num_batches_tracked.item(), net.running_mean.tolist()
        (0, [0.0, 0.0])
    """
    tracked = [
        (module, name, buffer)
        for module in model.modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    # `data` has no version: a backward pass that is still to come does not take a buffer put back for one changed.
    contents = [_own_memory(buffer.data) for _, _, buffer in tracked]
    before = [content.clone() for content in contents]
    try:
        yield
    finally:
        if tracked:
            torch._foreach_copy_(contents, before)
        for module, name, buffer in tracked:
            module._buffers[name] = buffer


def _own_memory(content: Tensor) -> Tensor:
    """Each place in memory once: an expanded tensor shows one place many times, and torch refuses to write there."""
    if content.layout is torch.strided:
        for dimension, stride in enumerate(content.stride()):
            if stride == 0 and content.shape[dimension] > 1:
                content = content.narrow(dimension, 0, 1)
    return content

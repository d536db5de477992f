"""Normalisation layers: statistics that a second forward pass must leave alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["frozen_statistics"]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Put back running means, variances and batch counts at the end of the block.

    Inside, norms in train mode use batch statistics as ever; what their forward passes do to the running statistics
    is undone, also on an exception. Norms in eval mode, or without running statistics, are not touched.

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
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        for buffer in (module.running_mean, module.running_var, module.num_batches_tracked)
        if buffer is not None
    ]
    before = [buffer.clone() for buffer in tracked]
    try:
        yield
    finally:
        if tracked:
            with torch.no_grad():
                torch._foreach_copy_(tracked, before)

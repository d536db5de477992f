"""The meta pass as a user writes it in a plain training loop."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from layertune import MetaLR, meta_pass

__all__ = ["adapt_if_due"]


def adapt_if_due(
    metalr: MetaLR, network: nn.Module, meta_batches: Iterator[Any], loss_of: Callable[[Any], Tensor]
) -> None:
    """Learn from the next meta batch if a step waits for one; nothing is drawn with ``streaming=True``."""
    if metalr.due and not metalr.streaming:
        metalr.optimizer.zero_grad()
        with meta_pass(network):
            loss_of(next(meta_batches)).backward()
        metalr.adapt()

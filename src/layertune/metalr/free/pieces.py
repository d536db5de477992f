"""Cut large tensors into pieces, so that what is computed from them takes little memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["pieces"]

PIECE = 2**18  # elements, 1 MiB in float32; smaller pieces take more time for more calls


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield pieces of several tensors of one shape, cut alike, that share the tensors' memory.

    Tensors on a GPU, small ones, and such whose elements lie in different orders in memory are yielded whole.

    Args:
        *tensors: The tensors, of one shape.

    Example:
        >>> [one.numel() for one, _ in pieces(torch.zeros(300, 1000), torch.ones(300, 1000))]
        [262144, 37856]
    """
    first = tensors[0]
    alike = len({tensor.stride() for tensor in tensors}) == 1 and torch.ops.aten.is_non_overlapping_and_dense(first)
    if first.device.type != "cpu" or first.numel() <= PIECE or not alike:
        yield tensors
        return
    flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    for start in range(0, first.numel(), PIECE):
        yield tuple(tensor[start : start + PIECE] for tensor in flat)

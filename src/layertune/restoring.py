"""Random state and module attributes that a look at a network must leave alone."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["kept_attributes", "kept_random_state"]


@contextmanager
def kept_random_state(cuda_devices: Sequence[int] = ()) -> Iterator[None]:
    """Put the generators of torch, numpy and Python back at the end of the block.

    Args:
        cuda_devices: indices of the CUDA devices whose generators are put back, beside that of the CPU.

    Example:
        >>> before = torch.get_rng_state()
        >>> with kept_random_state():
        ...     _ = torch.rand(3), random.random()
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - what networks draw from
    try:
        with torch.random.fork_rng(devices=list(cuda_devices)):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def kept_attributes(net: nn.Module) -> Iterator[None]:
    """Put back whatever is written into the modules inside: attributes, buffers, hooks, and caches in containers.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with kept_attributes(net):
        ...     net.cache = {"last": 1}
        >>> hasattr(net, "cache")
        False
    """
    before: dict[int, tuple[Any, Any]] = {}
    for module in net.modules():
        _remember(module.__dict__, before)
    try:
        yield
    finally:
        for container, contents in before.values():
            container.clear()
            if isinstance(container, list | deque):
                container.extend(contents)
            else:
                container.update(contents)


def _remember(value: Any, before: dict[int, tuple[Any, Any]]) -> None:
    """Copies of all containers under a value; modules in them have their own turn."""
    if not isinstance(value, dict | list | set | deque) or id(value) in before:
        return
    before[id(value)] = value, value.copy()
    for inner in value.values() if isinstance(value, dict) else value:
        _remember(inner, before)

"""Bytes of the tensors that exist, and their peak, counted through everything that torch computes."""

import weakref
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PeakBytes"]


class PeakBytes(TorchDispatchMode):
    """Count the storage of every tensor that is made in the context, also by autograd, until it is freed.

    Views share their tensor's storage and are counted once. Work space inside an operator is not counted.

    Attributes:
        alive: Bytes that exist now.
        peak: The largest ``alive`` since the start or the last ``restart``.

    Example:
        >>> import torch
        >>> with PeakBytes() as counted:
        ...     a = torch.zeros(100)
        ...     b = a[:50] + 1
        ...     del a
        >>> counted.alive, counted.peak
        (200, 600)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.alive = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[UntypedStorage]] = {}

    def restart(self) -> None:
        """Restart the peak at the bytes that exist now."""
        self.peak = self.alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return result

    def _count(self, storage: UntypedStorage) -> None:
        # torch keeps one Python object per storage for as long as the storage itself lives.
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def freed(_: object) -> None:
            del self._storages[key]
            self.alive -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.alive += size

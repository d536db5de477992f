"""The adaptations that were left out because the meta gradient was not finite."""

import warnings

import torch
from torch import Tensor

__all__ = ["Skipped"]


class Skipped:
    """Count, on the device, the adaptations with a meta gradient that was not finite, and warn of the first."""

    def __init__(self, device: torch.device) -> None:
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._warned = False

    @property
    def count(self) -> int:
        """The number of adaptations. Reading it waits for the device."""
        return int(self._count.item())

    def add(self, overflowed: Tensor) -> None:
        """Count one more if ``overflowed`` is true."""
        self._count = self._count.to(overflowed.device) + overflowed  # the parameters may have been moved

    def warn(self, step: int) -> None:
        """Warn once there was a first case. Until then each call waits for the device."""
        if not self._warned and self.count:
            self._warned = True
            warnings.warn(
                f"the meta gradient was not finite at or before step {step}: nothing was learned from it and the step "
                "was kept; further cases are only counted, in MetaLR.skipped",
                RuntimeWarning,
                stacklevel=4,
            )

"""The learned rates over time, in memory that does not grow with the run."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.rates.profile import LRProfile

__all__ = ["History"]

MAX_RECORDS = 2048

Record = tuple[int, tuple[str, ...], Tensor]


class History:
    """Record steps, factors and rates without waiting for the device.

    Past 2048 records every second one is dropped, and from then on half as many adaptations are recorded.

    Args:
        records: The step, the names of the layers and a 2 x layers tensor (factors, rates) of each record.
        stride: One of ``stride`` adaptations is recorded.
        seen: Number of adaptations since the last record.
    """

    def __init__(self, records: list[Record] | None = None, stride: int = 1, seen: int = 0) -> None:
        self.records = records or []
        self.stride = stride
        self.seen = seen

    @classmethod
    def of(cls, optimizer: Optimizer) -> Self:
        """Return the history in an optimizer's loaded state, or an empty one."""
        held: dict[str, Any] = optimizer.param_groups[0].get("meta_history", {})
        if not held:
            return cls()
        names = tuple(held["layers"])
        records = [(step, names, value) for step, value in zip(held["steps"].tolist(), held["values"], strict=True)]
        return cls(records, held["stride"], held.get("seen", 0))  # version 0.1 saved no `seen`

    def write(self, optimizer: Optimizer, names: Sequence[str]) -> None:
        """Write the history into the first param group, where ``optimizer.state_dict()`` includes it."""
        if self.records:
            optimizer.param_groups[0]["meta_history"] = {
                "layers": list(names),
                "steps": torch.tensor([step for step, _, _ in self.records]),
                "values": self._values(tuple(names)),
                "stride": self.stride,
                "seen": self.seen,
            }

    def record(self, step: int, names: Sequence[str], scales: Tensor, lrs: Tensor) -> None:
        """Add the factors and rates that hold from the correction of this step on."""
        self.seen += 1
        if self.seen == self.stride:
            self.seen = 0
            self.records.append((step, tuple(names), torch.stack([scales, lrs])))
        if len(self.records) > MAX_RECORDS:
            if len(self.records) % 2:  # then the last record is one of those that are dropped
                self.seen += self.stride
            self.records, self.stride = self.records[1::2], 2 * self.stride

    def lrs_over_time(self, names: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
        """Return the step of each record with the rates of the named layers. This waits for the device once."""
        if not self.records:
            return []
        lrs = self._values(tuple(names))[:, 1].tolist()
        return [(step, dict(zip(names, row, strict=True))) for (step, _, _), row in zip(self.records, lrs, strict=True)]

    def profile(self, names: Sequence[str], depths: Sequence[int]) -> LRProfile:
        """Return all records of the named layers as a profile. This waits for the device once.

        Args:
            names: The names of the layers to return.
            depths: The depth of each layer.

        Raises:
            OptimizerError: There is no record yet.
        """
        if not self.records:
            raise OptimizerError("there is no profile before the first adaptation; train at least one step")
        steps = tuple(step for step, _, _ in self.records)
        scales, lrs = ([tuple(row) for row in part.tolist()] for part in self._values(tuple(names)).unbind(1))
        return LRProfile(tuple(names), tuple(depths), steps, tuple(scales), tuple(lrs))

    def _values(self, names: tuple[str, ...]) -> Tensor:
        """Fetch all records in one wait and keep them on the CPU.

        A layer that joined the optimizer during the run counts as untrained before: factor 1, rate 0.

        Returns:
            Records x 2 x layers.
        """
        fetched: dict[int, Tensor] = {}
        for count in {value.shape[1] for _, _, value in self.records}:
            new = [i for i, (_, _, value) in enumerate(self.records) if value.shape[1] == count and not value.is_cpu]
            if new:
                fetched.update(zip(new, torch.stack([self.records[i][2] for i in new]).cpu(), strict=True))
        self.records = [(step, own, fetched.get(i, value)) for i, (step, own, value) in enumerate(self.records)]
        return torch.stack([value if own == names else _arranged(value, own, names) for _, own, value in self.records])


def _arranged(value: Tensor, own: tuple[str, ...], names: tuple[str, ...]) -> Tensor:
    untrained = value.new_tensor([[1.0], [0.0]])
    return torch.cat([value, untrained], dim=1)[:, [own.index(name) if name in own else len(own) for name in names]]

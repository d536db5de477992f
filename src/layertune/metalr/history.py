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
    """Records (step, factors, rates) without waiting for the device; past 2048 records every second is dropped.

    Args:
        records: step, names of layers, and a 2 x layers tensor (factors, rates) each.
        stride: records are kept where the step is a multiple of ``stride`` adaptations.
    """

    def __init__(self, records: list[Record] | None = None, stride: int = 1) -> None:
        self.records = records or []
        self.stride = stride

    @classmethod
    def of(cls, optimizer: Optimizer) -> Self:
        """The history that an optimizer's loaded state carries, or an empty one."""
        held: dict[str, Any] = optimizer.param_groups[0].get("meta_history", {})
        if not held:
            return cls()
        names = tuple(held["layers"])
        steps = held["steps"].tolist()
        return cls([(step, names, value) for step, value in zip(steps, held["values"], strict=True)], held["stride"])

    def write(self, optimizer: Optimizer, names: Sequence[str]) -> None:
        """Put the history where ``optimizer.state_dict()`` takes it along."""
        if self.records:
            steps = torch.tensor([step for step, _, _ in self.records])
            values = self._values(tuple(names))
            held = {"layers": list(names), "steps": steps, "values": values, "stride": self.stride}
            optimizer.param_groups[0]["meta_history"] = held

    def record(self, step: int, names: Sequence[str], scales: Tensor, lrs: Tensor, *, every: int) -> None:
        """Add what holds from this step's correction on."""
        if step % (every * self.stride) == 0:
            self.records.append((step, tuple(names), torch.stack([scales, lrs])))
        if len(self.records) > MAX_RECORDS:
            self.stride *= 2
            self.records = [record for record in self.records if record[0] % (every * self.stride) == 0]

    def lrs_over_time(self, names: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
        """Each record's step, and the rates of the named layers; one wait for the device."""
        if not self.records:
            return []
        lrs = self._values(tuple(names))[:, 1].tolist()
        return [(step, dict(zip(names, row, strict=True))) for (step, _, _), row in zip(self.records, lrs, strict=True)]

    def profile(self, names: Sequence[str], depths: Sequence[int]) -> LRProfile:
        """All records of the named layers, whose depths are given; one wait for the device.

        Raises:
            OptimizerError: there is no record yet.
        """
        if not self.records:
            raise OptimizerError("there is no profile before the first adaptation; train at least one step")
        steps = tuple(step for step, _, _ in self.records)
        scales, lrs = ([tuple(row) for row in part.tolist()] for part in self._values(tuple(names)).unbind(1))
        return LRProfile(tuple(names), tuple(depths), steps, tuple(scales), tuple(lrs))

    def _values(self, names: tuple[str, ...]) -> Tensor:
        """All records on the CPU, fetched in one wait and kept there; records x 2 x layers.

        A layer that joined the optimizer during the run counts as untrained before: factor 1, rate 0.
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

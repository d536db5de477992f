"""The learned rates over time, in memory that does not grow with the run."""

from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["History"]

MAX_RECORDS = 2048


class History:
    """Records (step, factors, rates) without waiting for the device; past 2048 records every second is dropped.

    Args:
        records: step and a 2 x layers tensor (factors, rates) each.
        stride: records are kept where the step is a multiple of ``stride`` adaptations.
    """

    def __init__(self, records: list[tuple[int, Tensor]] | None = None, stride: int = 1) -> None:
        self.records = records or []
        self.stride = stride

    @classmethod
    def of(cls, optimizer: Optimizer) -> Self:
        """The history that an optimizer's loaded state carries, or an empty one."""
        held: dict[str, Any] = optimizer.param_groups[0].get("meta_history", {})
        steps = held["steps"].tolist() if held else []
        return cls(list(zip(steps, held["values"].unbind() if held else (), strict=True)), held.get("stride", 1))

    def write(self, optimizer: Optimizer) -> None:
        """Put the history where ``optimizer.state_dict()`` takes it along."""
        if self.records:
            steps, values = zip(*self.records, strict=True)
            held = {"steps": torch.tensor(steps), "values": torch.stack(values).cpu(), "stride": self.stride}
            optimizer.param_groups[0]["meta_history"] = held

    def record(self, step: int, scales: Tensor, lrs: Tensor, *, every: int) -> None:
        """Add what holds from this step's correction on."""
        if step % (every * self.stride) == 0:
            self.records.append((step, torch.stack([scales, lrs])))
        if len(self.records) > MAX_RECORDS:
            self.stride *= 2
            self.records = [record for record in self.records if record[0] % (every * self.stride) == 0]

    def numbers(self) -> tuple[list[int], list[tuple[float, ...]], list[tuple[float, ...]]]:
        """Steps, factors and rates as numbers: one wait for the device."""
        if not self.records:
            return [], [], []
        steps = [step for step, _ in self.records]
        values = torch.stack([value.cpu() for _, value in self.records])
        return steps, [tuple(row) for row in values[:, 0].tolist()], [tuple(row) for row in values[:, 1].tolist()]

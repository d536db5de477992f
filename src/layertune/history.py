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
            layers = max(value.shape[1] for _, value in self.records)
            steps = torch.tensor([step for step, _ in self.records])
            held = {"steps": steps, "values": self._values(layers), "stride": self.stride}
            optimizer.param_groups[0]["meta_history"] = held

    def record(self, step: int, scales: Tensor, lrs: Tensor, *, every: int) -> None:
        """Add what holds from this step's correction on."""
        if step % (every * self.stride) == 0:
            self.records.append((step, torch.stack([scales, lrs])))
        if len(self.records) > MAX_RECORDS:
            self.stride *= 2
            self.records = [record for record in self.records if record[0] % (every * self.stride) == 0]

    def numbers(self, layers: int) -> tuple[list[int], list[tuple[float, ...]], list[tuple[float, ...]]]:
        """Steps, and factors and rates of so many layers, as numbers: one wait for the device."""
        if not self.records:
            return [], [], []
        steps = [step for step, _ in self.records]
        values = self._values(layers)
        return steps, [tuple(row) for row in values[:, 0].tolist()], [tuple(row) for row in values[:, 1].tolist()]

    def _values(self, layers: int) -> Tensor:
        """All records on the CPU, fetched in one wait and kept there; records x 2 x layers.

        A layer that joined the optimizer during the run counts as untrained before: factor 1, rate 0.
        """
        fetched: dict[int, Tensor] = {}
        for count in {value.shape[1] for _, value in self.records}:
            new = [i for i, (_, value) in enumerate(self.records) if value.shape[1] == count and not value.is_cpu]
            if new:
                fetched.update(zip(new, torch.stack([self.records[i][1] for i in new]).cpu(), strict=True))
        self.records = [(step, fetched.get(i, value)) for i, (step, value) in enumerate(self.records)]
        untrained = torch.tensor([[1.0], [0.0]], dtype=self.records[0][1].dtype)
        return torch.stack(
            [torch.cat([value, untrained.expand(2, layers - value.shape[1])], 1) for _, value in self.records]
        )

"""The bundle's schedule of the learning rate, which a run may be resumed with for more epochs."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["PolynomialDecay"]


class PolynomialDecay(LambdaLR):
    """lr (1 - epoch / epochs) ** power, nnU-Net's schedule, set by the epoch alone.

    A resumed run keeps to the number of epochs that it is given now: torch's own schedules go on with what was saved,
    and so with a rate of 0 where the former run had come to its end.

    Args:
        optimizer: whose groups' rates it sets.
        epochs: of the run.
        power: of the decay.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> PolynomialDecay(optimizer, epochs=10, power=1.0).load_state_dict({"last_epoch": 5})
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """

    def __init__(self, optimizer: Optimizer, epochs: int, power: float = 0.9) -> None:
        super().__init__(optimizer, lambda epoch: max(0.0, 1 - epoch / epochs) ** power)

    def state_dict(self) -> dict[str, Any]:
        """The epoch."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to an epoch; call it after the optimizer's own state was loaded."""
        self.last_epoch = state_dict["last_epoch"]
        decay = self.lr_lambdas[0](self.last_epoch)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * decay
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

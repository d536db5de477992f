"""A schedule of the learning rate with which a run can resume for more epochs."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["PolynomialDecay"]


class PolynomialDecay(LambdaLR):
    """Decay the learning rate as lr (1 - epoch / epochs) ** power, which is nnU-Net's schedule.

    The rate depends on the epoch and on ``epochs`` alone, so a run may resume with a larger number of epochs. PyTorch's
    own schedules continue with the saved numbers instead, which means a rate of 0 after the end of the first run.

    Args:
        optimizer: The optimizer whose learning rates are set.
        epochs: The number of epochs of the run.
        power: The exponent of the decay.

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
        """Return the epoch."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a saved epoch. Call it after the optimizer has loaded its own state.

        Args:
            state_dict: A value that ``state_dict()`` returned.
        """
        self.last_epoch = state_dict["last_epoch"]
        decay = self.lr_lambdas[0](self.last_epoch)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * decay
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

"""What every host's plug-in owes, and how a host is asked for it.

A new host adds a ``Host`` with a ``train`` of its own to ``test_contract.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["End", "Host", "Train", "left_behind", "weights"]


class End(NamedTuple):
    """What is there when a run has ended and layertune is gone."""

    model: nn.Module
    optimizer: Optimizer
    lrs: dict[str, float]


class Train(Protocol):
    def __call__(self, folder: Path, *, hyper_lr: float | None, first: int = 0, last: int = 4) -> End:
        """Train as the host's users do.

        Args:
            folder: the run's state is saved here at its end.
            hyper_lr: of the plug-in's MetaLR; with ``None`` the host trains without layertune.
            first: where the run begins; above 0 it takes up the state that the folder holds.
            last: where it ends. The unit is the host's own: a step, an epoch.
        """
        ...


@dataclass(frozen=True)
class Host:
    """One host: the package of its plug-in, and a run of its own."""

    package: str
    train: Callable[[], Train]
    """Gives the run; called only where the host is installed."""


def weights(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return list(model.state_dict().values())


def left_behind(end: End) -> list[str]:
    """What MetaLR left on the optimizer or the model: nothing, if all is well."""
    optimizer = end.optimizer
    hooks = [name for name, value in vars(optimizer).items() if name.endswith("_hooks") and value]
    keys = [f"group[{key!r}]" for group in optimizer.param_groups for key in group if key.startswith("meta")]
    state = [f"state[{key!r}]" for of in optimizer.state.values() for key in of if "meta" in str(key)]
    frozen = [name for name, parameter in end.model.named_parameters() if not parameter.requires_grad]
    return [*hooks, *keys, *state, *frozen]

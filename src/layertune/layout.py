"""How the param groups of an optimizer make up layers."""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError

__all__ = ["Layout"]


class Layout(NamedTuple):
    """Which group belongs to which layer: groups of one ``"layer"`` together, a group without that key on its own.

    Attributes:
        key: the groups it was read from, by identity and length.
        names: layers in the order of the groups.
        layer_of: the layer of each group.
        first: the first group of each layer, whose learning rate stands for the layer's.
        members: 0/1 matrix of layers x groups, on the parameters' device.
    """

    key: tuple[int, ...]
    names: list[str]
    layer_of: list[int]
    first: list[int]
    members: Tensor

    @classmethod
    def of(cls, optimizer: Optimizer) -> Self:
        """Read the layout off an optimizer.

        Raises:
            OptimizerError: it has no parameters.
        """
        groups = optimizer.param_groups
        device = next((parameter.device for group in groups for parameter in group["params"]), None)
        if device is None:
            raise OptimizerError("this optimizer has no parameters; give it the model's param groups")
        labels = [str(group.get("layer", group.get("name", f"group {i}"))) for i, group in enumerate(groups)]
        names = list(dict.fromkeys(labels))
        layer_of = [names.index(label) for label in labels]
        # Sums of many small terms: float64 wherever the device has it.
        members = torch.zeros(len(names), len(groups), dtype=torch.float32 if device.type == "mps" else torch.float64)
        members[layer_of, range(len(groups))] = 1.0
        return cls(_key(optimizer), names, layer_of, [labels.index(name) for name in names], members.to(device))

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer still has the groups that this was read from."""
        return self.key == _key(optimizer)


def _key(optimizer: Optimizer) -> tuple[int, ...]:
    return tuple(number for group in optimizer.param_groups for number in (id(group), len(group["params"])))

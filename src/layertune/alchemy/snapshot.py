"""The values of all parameters and buffers of a network, to start from them again."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from layertune.errors import AlchemyError

__all__ = ["Snapshot"]


class Snapshot:
    """Copies of a network's parameters and buffers, also of buffers that no state dict holds.

    Args:
        model: The network. Its tensors are copied now.

    Raises:
        AlchemyError: Parameters were made in inference mode, so they cannot be trained.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> snapshot = Snapshot(net)
        >>> _ = nn.init.zeros_(net.bias)
        >>> snapshot.restore()
        >>> bool((net.bias == 0).all())
        False
    """

    def __init__(self, model: nn.Module) -> None:
        made_there = [name for name, parameter in model.named_parameters() if parameter.is_inference()]
        if torch.is_inference_mode_enabled() or made_there:
            where = f"its {made_there[0]} was made there" if made_there else "this is called there"
            raise AlchemyError(
                f"a network cannot train under torch.inference_mode(), and {where}; leave the mode, and make the "
                "network outside of it"
            )
        self._model = model
        self._values = self.values()

    def values(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return copies of the network's tensors as they are now.

        Args:
            names: The parameters and buffers to copy; all of them by default.
        """
        tensors = dict([*self._model.named_parameters(), *self._model.named_buffers()])
        return {name: tensors[name].detach().clone() for name in (tensors if names is None else names)}

    def restore(self) -> None:
        """Give the network's tensors their first values, and drop all gradients."""
        self.set(self._values)
        self._model.zero_grad()

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Give the network's tensors other values. A buffer that has another shape is replaced.

        Args:
            values: Name -> value, as ``values()`` returns them.
        """
        for name, value in values.items():
            owner, _, last = name.rpartition(".")
            module = self._model.get_submodule(owner)
            tensor = module._parameters.get(last, module._buffers.get(last))
            if tensor is not None and tensor.shape == value.shape:
                with torch.no_grad():
                    tensor.copy_(value)
            elif last in module._buffers:
                module._buffers[last] = value.clone()

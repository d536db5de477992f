"""Put back what was changed for a time: frozen parameters, random state, and attributes of modules.

The global generators are also seeded here, so that seeding and restoring concern the same ones.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import CellType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from layertune.errors import ModelError

__all__ = [
    "Frozen",
    "cuda_devices_of",
    "kept_attributes",
    "kept_random_state",
    "seed_generators",
    "unwritten_parameters",
]


class Frozen:
    """Freeze parameters until ``undo()`` is called, or until a ``with`` block ends.

    Args:
        parameters: The parameters to freeze, by name; they must require a gradient.
        norms: The norms whose running statistics are frozen too.

    Attributes:
        names: The names of the parameters that were frozen.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with Frozen({"bias": net.bias}):
        ...     net.bias.requires_grad
        False
        >>> net.bias.requires_grad
        True
    """

    def __init__(self, parameters: dict[str, nn.Parameter], norms: Iterable[nn.Module] = ()) -> None:
        self.names = tuple(parameters)
        self._parameters = list(parameters.values())
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        self._statistics = _FrozenStatistics(norms)

    def undo(self) -> None:
        """Let the parameters require a gradient and the statistics move again; a second call does nothing."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._parameters = []
        self._statistics.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


@contextmanager
def kept_random_state(cuda_devices: Sequence[int] = ()) -> Iterator[None]:
    """Restore the random state of torch, numpy and Python at the end of the block.

    Args:
        cuda_devices: Indices of the CUDA devices to restore as well. By default only the generator of the CPU is.

    Example:
        >>> before = torch.get_rng_state()
        >>> with kept_random_state():
        ...     _ = torch.rand(3), random.random()
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - networks draw from it
    try:
        with torch.random.fork_rng(devices=list(cuda_devices)):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def seed_generators(seed: int, cuda_devices: Sequence[int] | None = None) -> None:
    """Seed the global generators of torch, numpy and Python, from which networks, data sets and augmentations draw.

    Args:
        seed: The seed, >= 0. numpy gets its last 32 bits, because it takes no more.
        cuda_devices: Indices of the CUDA devices to seed beside the CPU; inside ``kept_random_state`` give the same
            ones. By default all devices are seeded, as by ``torch.manual_seed``.

    Example:
        >>> with kept_random_state():
        ...     seed_generators(5, ())
        ...     first = random.random()
        ...     seed_generators(5, ())
        ...     first == random.random()
        True
    """
    if cuda_devices is None:
        torch.manual_seed(seed)
    else:
        # `torch.manual_seed` would also seed devices whose state nobody restores.
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda_devices)):
            generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - networks draw from it


def cuda_devices_of(parameters: Iterable[Tensor]) -> list[int]:
    """Return the indices of the CUDA devices that hold the parameters, in ascending order."""
    return sorted({parameter.device.index or 0 for parameter in parameters if parameter.device.type == "cuda"})


@contextmanager
def kept_attributes(net: nn.Module, *, unregistered: bool = False) -> Iterator[None]:
    """Restore the attributes of all modules of a network at the end of the block.

    Attributes, buffers and hooks are restored, and the contents of lists, dicts, sets and deques, nested at will. An
    object of another class that a forward writes into, as a logger, is not restored.

    Args:
        net: The network; its registered modules are always restored.
        unregistered: Whether modules in a plain list or dict are restored too, and the variables that hooks and other
            functions of the modules keep in their closures.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with kept_attributes(net):
        ...     net.cache = {"last": 1}
        >>> hasattr(net, "cache")
        False
    """
    memory = _Memory(unregistered=unregistered)
    for module in net.modules():
        memory.take(module.__dict__)
    try:
        yield
    finally:
        memory.restore()


@contextmanager
def unwritten_parameters(net: nn.Module) -> Iterator[None]:
    """Fail at the end of the block if the block has written into a parameter or buffer of the network.

    A trace runs a forward on copies of them. Code that reaches the network's own tensors in another way than as
    attributes of its modules, as by a list of its own, can still write into them: a tensor that was replaced is put
    back, and one whose contents have changed is named.

    Args:
        net: The network whose forward runs inside.

    Raises:
        ModelError: The block has written into a parameter or buffer.
    """
    tensors = dict([*net.named_parameters(), *net.named_buffers()])
    before = {name: (tensor.data, _version(tensor)) for name, tensor in tensors.items()}
    written = []
    try:
        yield
    finally:
        for name, (data, version) in before.items():
            if tensors[name].untyped_storage() is not data.untyped_storage():
                tensors[name].data = data
                written.append(name)
            elif _version(tensors[name]) != version:
                written.append(name)
    if written:
        raise ModelError(
            f"the forward of {type(net).__name__} writes into {', '.join(written[:3])}, which it does not read as an "
            "attribute of a module, so a trace changes the network; change no parameter in a forward"
        )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version  # inference tensors do not count their changes


class _FrozenStatistics:
    """Let norms run in evaluation mode, whatever mode the network is in, by hooks on their forward.

    A norm that was only set to evaluation mode would be back in train mode with the next ``model.train()``.
    """

    def __init__(self, norms: Iterable[nn.Module]) -> None:
        self._training: dict[int, bool] = {}
        self._handles = []
        for norm in norms:
            self._handles.append(norm.register_forward_pre_hook(self._enter))
            self._handles.append(norm.register_forward_hook(self._leave, always_call=True))

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, norm: nn.Module, _: Any) -> None:
        self._training[id(norm)] = norm.training
        norm.training = False

    def _leave(self, norm: nn.Module, _: Any, __: Any) -> None:
        norm.training = self._training.pop(id(norm), norm.training)


class _Memory:
    """Shallow copies of containers and of functions' closures, each taken once."""

    def __init__(self, *, unregistered: bool) -> None:
        self._unregistered = unregistered
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._cells: dict[int, tuple[CellType, Any]] = {}

    def take(self, value: Any) -> None:
        """Copy all containers under a value; registered modules have their own turn."""
        if isinstance(value, dict | list | set | deque) and id(value) not in self._containers:
            self._containers[id(value)] = value, value.copy()
            for inner in list(value.values() if isinstance(value, dict) else value):
                self.take(inner)
        elif self._unregistered and isinstance(value, nn.Module):
            self.take(value.__dict__)
        elif self._unregistered and callable(value):
            self._take_closure(value)

    def restore(self) -> None:
        """Put the contents back where they have changed."""
        for cell, content in self._cells.values():
            if cell.cell_contents is not content:
                cell.cell_contents = content
        for container, contents in self._containers.values():
            container.clear()
            if isinstance(container, list | deque):
                container.extend(contents)
            else:
                container.update(contents)

    def _take_closure(self, function: Any) -> None:
        if isinstance(function, partial):
            function = function.func
        for cell in getattr(function, "__closure__", None) or ():
            try:
                content = cell.cell_contents
            except ValueError:  # the variable has no value yet
                continue
            if id(cell) not in self._cells:
                self._cells[id(cell)] = cell, content
                self.take(content)

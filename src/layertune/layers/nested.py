"""Tensors in what a forward takes and gives: in containers, dataclasses and mappings, nested at will."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from layertune.errors import ModelError

__all__ = ["map_tensors", "tensors_in"]


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of nested containers in which each tensor is changed; what is no tensor stays as it is.

    Args:
        value: Tensors in containers that torch's trees know, in dataclasses and in mappings.
        change: The function from a tensor to the one that takes its place.

    Raises:
        ModelError: A value holds tensors in a way that is not known, or is a numpy array.

    Example:
        >>> import torch
        >>> map_tensors({"image": torch.ones(1), "name": "case 1"}, lambda tensor: tensor + 1)
        {'image': tensor([2.]), 'name': 'case 1'}
    """

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        parts = _parts(leaf)
        return leaf if parts is None else _with_parts(leaf, {key: map_tensors(part, change) for key, part in parts})

    return tree_map(changed, value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers, in their order.

    Raises:
        ModelError: A value holds tensors in a way that is not known, or is a numpy array.
    """
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        for _, part in _parts(leaf) or ():
            yield from tensors_in(part)


def _parts(leaf: Any) -> list[tuple[Any, Any]] | None:
    """Return the keys and parts of a container that torch's trees take for a leaf; ``None`` for anything else."""
    if isinstance(leaf, Mapping):
        return list(leaf.items())
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return [(name, getattr(leaf, name)) for name in _attributes(leaf) if hasattr(leaf, name)]
    if isinstance(leaf, np.ndarray) or any(isinstance(part, Tensor) for part in _own_values(leaf)):
        raise ModelError(
            f"a {type(leaf).__module__}.{type(leaf).__name__} among the inputs or outputs of the network holds numbers "
            "that cannot be followed; give and return tensors in tuples, lists, dicts, mappings or dataclasses, or "
            "register the class with torch.utils._pytree.register_pytree_node"
        )
    return None


def _own_values(leaf: Any) -> list[Any]:
    return [] if isinstance(leaf, type | Tensor) else list(getattr(leaf, "__dict__", {}).values())


def _attributes(value: Any) -> list[str]:
    return list(dict.fromkeys([*value.__dataclass_fields__, *getattr(value, "__dict__", ())]))


def _with_parts(container: Any, parts: Mapping[Any, Any]) -> Any:
    if isinstance(container, Mapping) and not isinstance(container, MutableMapping):
        return dict(parts)
    changed = copy.copy(container)
    for key, part in parts.items():
        if isinstance(container, Mapping):
            changed[key] = part
        else:
            object.__setattr__(changed, key, part)  # a frozen dataclass refuses its own way
    return changed

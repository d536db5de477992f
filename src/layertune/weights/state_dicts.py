"""Find the state dicts in what a checkpoint holds."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from layertune.errors import WeightsError

__all__ = ["HOLDERS", "differ", "state_dict_in"]

HOLDERS = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Keys under which programs save a state dict, in the order in which they are searched."""
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
DEEPEST = 3  # {"model": {"state_dict": {...}}} is the deepest that programs write
MOSTLY = 0.9  # a copy may lack a head

StateDict = Mapping[str, Tensor]


def state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict in what a file holds, without the prefixes of wrappers; ``None`` if there is none.

    If the file holds several copies of one network that differ (student and teacher, or an average of the weights), all
    are returned, each under the path of its own, so that nothing is chosen here. The same holds for several networks,
    none of which is under one of the keys in ``HOLDERS``.

    Args:
        content: The content of the file, as ``torch.load`` returns it.

    Raises:
        WeightsError: Two tensors have one name once the prefixes of wrappers are removed.

    Example:
        >>> state_dict_in({"epoch": 1, "model": {"module.fc.bias": torch.zeros(1), "module.fc._extra_state": None}})
        {'fc.bias': tensor([0.])}
        >>> list(state_dict_in({"student": {"fc.bias": torch.zeros(1)}, "teacher": {"fc.bias": torch.ones(1)}}))
        ['student.fc.bias', 'teacher.fc.bias']
    """
    tensors_at = {path: _without_wrappers(tensors) for path, tensors in _state_dicts(content, (), DEEPEST)}
    main = _main(content, (), DEEPEST)
    if main is None:
        paths = [path for path, tensors in tensors_at.items() if any("." in name for name in tensors)]
    else:
        paths = [main, *(path for path in tensors_at if path != main and _is_copy(tensors_at[path], tensors_at[main]))]
    if len(paths) == 1:
        return tensors_at[paths[0]]
    named = {".".join((*path, name)): tensor for path in paths for name, tensor in tensors_at[path].items()}
    return named or None


def differ(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are not known to have the same values."""
    comparable = first.layout == second.layout == torch.strided and not (first.is_meta or second.is_meta)
    if not comparable or first.dtype != second.dtype or first.shape != second.shape:
        return first is not second
    return not torch.equal(first, second)


def _state_dicts(content: Any, path: tuple[str, ...], deepest: int) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """Yield every state dict with its keys, the outer ones first."""
    if not isinstance(content, Mapping) or deepest == 0:
        return
    tensors = _tensors(content)
    if tensors:
        yield path, tensors
    for key, value in content.items():
        if isinstance(key, str):
            yield from _state_dicts(value, (*path, key), deepest - 1)


def _main(content: Any, path: tuple[str, ...], deepest: int) -> tuple[str, ...] | None:
    """Return the keys of the state dict that programs load from a file by themselves."""
    if not isinstance(content, Mapping) or deepest == 0:
        return None
    for holder in HOLDERS:
        main = _main(content.get(holder), (*path, holder), deepest - 1)
        if main is not None:
            return main
    return path if _tensors(content) else None


def _tensors(content: Mapping[Any, Any]) -> StateDict:
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    # Names of parameters have dots, unless the network is one layer; a lone tensor beside other data is no network.
    others = any(isinstance(value, Mapping) for value in content.values())
    return {} if others and not any("." in name for name in tensors) else tensors


def _is_copy(one: StateDict, other: StateDict) -> bool:
    """Whether most names and shapes agree, and not all values."""
    shared = [name for name in one if name in other and one[name].shape == other[name].shape]
    if len(shared) < MOSTLY * min(len(one), len(other)):
        return False
    return any(differ(one[name], other[name]) for name in shared)


def _without_wrappers(weights: StateDict) -> dict[str, Tensor]:
    # `module` is a name that networks use too; it is a wrapper's if all names begin with it.
    names = {name: [part for part in name.split(".") if part not in WRAPPERS[1:]] for name in weights}
    while all(parts[0] == WRAPPERS[0] and len(parts) > 1 for parts in names.values()):
        names = {name: parts[1:] for name, parts in names.items()}
    plain = {".".join(parts): weights[name] for name, parts in names.items()}
    if len(plain) < len(weights):
        raise WeightsError("it holds several weights of one name, once the prefixes of wrappers are removed")
    return plain

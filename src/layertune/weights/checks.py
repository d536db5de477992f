"""Refuse a loading that is trivial, or that would put NaN into a network."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from os import PathLike

import torch
from torch import Tensor, nn

from layertune.errors import WeightsError
from layertune.weights.report import LEAST_OF_NETWORK, Loaded, listed
from layertune.weights.structure import Shapes, is_statistic, module_of
from layertune.weights.targets import Source, Targets

__all__ = ["Shares", "measure_shares", "require_finite", "require_share", "require_types"]


def require_types(model: object, weights: object) -> None:
    """Refuse arguments of ``load_weights`` that are no network or no tensors by name.

    Raises:
        WeightsError: The message says what to pass.
    """
    if not isinstance(model, nn.Module):
        raise WeightsError(
            f"load_weights takes the network first, a torch.nn.Module, and then the weights; the first argument is a "
            f"{type(model).__name__}"
        )
    if isinstance(weights, str | PathLike):
        raise WeightsError(
            f"load_weights takes tensors by name, not the path of a file; read it first: "
            f"load_weights(model, read_weights({str(weights)!r}))"
        )
    if not isinstance(weights, Mapping):
        hint = "; give its state_dict()" if isinstance(weights, nn.Module) else ", as read_weights returns them"
        raise WeightsError(f"load_weights takes tensors by name, not a {type(weights).__name__}{hint}")


@dataclass(frozen=True)
class Shares:
    """How much of the parameters outside the head matches, counted in elements.

    Elements and not tensors are counted, since norms have most of the tensors and hardly any of the elements: of a 2D
    ResNet-18 in a 3D one, 40 of 62 tensors fit and no convolution does.

    Attributes:
        network: Share of the network's parameters, 0 to 1.
        file: Share of the file's, 0 to 1.
    """

    network: float
    file: float


def measure_shares(pairs: Mapping[str, str], source: Source, targets: Targets, fresh: Collection[str] = ()) -> Shares:
    """Measure how much of the network and of the file is matched.

    The head is the last module that owns parameters, on each side; it has other classes in most cases, so it does not
    count, unless it is all that there is.

    Args:
        pairs: Name in the network -> name in the file.
        source: The tensors of the file, by name.
        targets: The tensors of the network that get them.
        fresh: Parameters of the network that do not count, since the user wants them fresh.
    """
    ours = {name: targets.shapes[name] for name, tensor in targets.tensors.items() if isinstance(tensor, nn.Parameter)}
    theirs = {name: shape for name, shape in source.shapes.items() if not is_statistic(name)}
    places = {source.place(file) for file in pairs.values()}
    return Shares(
        _share({name: shape for name, shape in ours.items() if name not in fresh}, lambda name: name in pairs),
        _share(theirs, lambda name: source.place(name) in places),
    )


def require_share(loaded: Loaded, least: float) -> None:
    """Refuse weights of which too little matches, by ``Loaded.suffices``.

    Args:
        loaded: The report of the tensors that match and of those that do not.
        least: The share that is required, 0 to 1.

    Raises:
        WeightsError: The shares are smaller.
    """
    if loaded.suffices(least):
        return
    left = (f"{name} ({why})" for name, why in loaded.missing.items())
    total, of_network, of_file = (
        len(loaded.matched) + len(loaded.missing),
        loaded.share_of_network,
        loaded.share_of_file,
    )
    raise WeightsError(
        f"only {len(loaded.matched)} of {total} tensors match, {_percent(of_network)} of the network's parameters "
        f"outside the head and {_percent(of_file)} of the file's; expected {_percent(least)} of either, and "
        f"{_percent(LEAST_OF_NETWORK * least)} of the network's. What matches: {listed(loaded.matched)}. What does "
        f"not: {listed(left)}. If the weights are of this network, say which name is which "
        "(rename=) or how it may be adapted (adapt=); "
        "allow_partial=True, --allow-partial where a command has it, loads what matches all the same"
    )


def require_finite(pairs: Mapping[str, str], source: Source, targets: Targets) -> None:
    """Refuse weights that are NaN or infinite, or become so in the network's kind of number.

    A buffer that has such values in the network too, at the same places, is a mask.

    Args:
        pairs: Name in the network -> name in the file.
        source: The tensors of the file, by name.
        targets: The tensors of the network that get them.

    Raises:
        WeightsError: There are such weights; the message names them.
    """
    broken = {own: _count_broken(source.tensors[file], targets.tensors[own]) for own, file in pairs.items()}
    damaged = [f"{pairs[own]} ({count} of {targets.tensors[own].numel()})" for own, count in broken.items() if count]
    if damaged:
        raise WeightsError(
            f"the weights hold NaN or infinite values in {listed(damaged)}: the training that wrote them diverged, the "
            "file is damaged, or the values are too large for the network's kind of number; take another checkpoint"
        )


def _count_broken(tensor: Tensor, target: Tensor) -> int:
    if not (target.is_floating_point() or target.is_complex()):
        return 0
    broken = ~_is_finite(tensor.detach().to(device=target.device, dtype=target.dtype))
    if not isinstance(target, nn.Parameter) and bool(broken.any()):
        broken &= _is_finite(target.detach())
    return int(broken.sum())


def _is_finite(tensor: Tensor) -> Tensor:
    # Eight-bit kinds of numbers lack torch.isfinite.
    return torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor)


def _share(shapes: Shapes, is_matched: Callable[[str], bool]) -> float:
    last = module_of(next(reversed(dict(shapes)), ""))
    counted = {name: prod(shape) for name, shape in shapes.items() if module_of(name) != last}
    counted = counted if sum(counted.values()) else {name: prod(shape) for name, shape in shapes.items()}
    total = sum(counted.values())
    return sum(count for name, count in counted.items() if is_matched(name)) / total if total else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"

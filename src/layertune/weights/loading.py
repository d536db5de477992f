"""Pre-trained weights into a network: by name where names agree, by order where that leaves no doubt, and a report."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

from layertune.errors import WeightsError
from layertune.layers.names import unwrap
from layertune.layers.trace import plain_name
from layertune.weights.file import read_weights
from layertune.weights.order import pair_between, pair_by_order

__all__ = ["Loaded", "load_weights", "read_weights"]

Rename = Mapping[str, str] | Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What of a file went into a network, and what did not and why.

    Attributes:
        matched: name in the network -> name in the file. A tensor that has several names in the network stands under
            its first.
        missing: name in the network -> why it was left as it was.
        unused: name in the file -> why nothing took it.
        by_order: those of ``matched`` whose names differ and that were told by order and shapes.
        prefix: how the file's names were changed to give the network's, as ``"* -> swinViT.*"``; empty if not at all.
    """

    matched: Mapping[str, str]
    missing: Mapping[str, str]
    unused: Mapping[str, str]
    by_order: tuple[str, ...] = ()
    prefix: str = ""

    def summary(self) -> str:
        """One line for a log."""
        named = [f"{len(self.by_order)} told by order and shape"] if self.by_order else []
        named += [self.prefix] if self.prefix else []
        told = f" ({', '.join(named)})" if named else ""
        total = len(self.matched) + len(self.missing)
        line = f"{len(self.matched)} of {total} tensors loaded{told}"
        if self.missing:
            line += f"; left as they were: {_some(f'{name} ({why})' for name, why in self.missing.items())}"
        return f"{line}; {len(self.unused)} of the file not used" if self.unused else line

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], *, rename: Rename | None = None, guess: bool = True
) -> Loaded:
    """Copy pre-trained weights into a network as far as they fit; all else stays as it was initialised.

    A tensor of the network takes the one of its name and shape. Where the two sides name things differently:

    - ``rename`` says how, and then nothing is guessed;
    - a prefix may be all that differs (``swinViT.``): it is used if it is the only one that fits at least half of the
      smaller side;
    - names may differ and the architecture not: see ``layertune.weights.order.pair_by_order``, which pairs by order
      and shape and leaves what is in doubt.

    Nothing is ever cut, averaged or interpolated: a head for other classes has another shape and stays fresh. Nothing
    is copied if there is an error.

    Args:
        model: any network, also under ``torch.compile`` or DDP. Names that share one tensor
            (nnU-Net's ``decoder.encoder``) are one.
        weights: name -> tensor, as ``read_weights`` gives them.
        rename: name in the file -> name in the network; names that a dict lacks stay, a function's ``None`` leaves one
            out.
        guess: whether a prefix and the order may be found out.

    Returns:
        What matched, what did not, and why.

    Raises:
        WeightsError: nothing fits, or ``rename`` gives two of the file's tensors one name.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
        >>> pretrained = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> loaded = load_weights(model, pretrained.state_dict())
        >>> loaded.missing
        {'1.weight': 'shape (4, 3) against (5, 3)', '1.bias': 'shape (4,) against (5,)'}
        >>> print(loaded.summary())
        2 of 4 tensors loaded; left as they were: 1.weight (shape (4, 3) against (5, 3)), 1.bias (shape (4,) ...
    """
    targets = _Targets(model)
    files = {plain_name(name): tensor for name, tensor in weights.items()}
    names = _renamed(files, rename)
    prefix = ""
    if guess and rename is None:
        names, prefix = _with_best_prefix(names, files, targets)
    pairs, refused = targets.fit(names, files)
    ordered: dict[str, str] | None = {}
    if guess and rename is None:
        shapes = _once(files)
        ordered = pair_between(targets.shapes, shapes, pairs) if pairs else pair_by_order(targets.shapes, shapes)
    pairs |= ordered or {}
    if not pairs:
        raise WeightsError(_nothing_fits(targets, files, refused, in_doubt=ordered is None))
    with torch.no_grad():
        for own, file in pairs.items():
            targets.tensors[own].copy_(files[file])
    return Loaded(
        matched={own: pairs[own] for own in targets.tensors if own in pairs},
        missing={own: refused.get(own, "missing in file") for own in targets.tensors if own not in pairs},
        unused=_unused(files, names, pairs, refused, targets),
        by_order=tuple(ordered or ()),
        prefix=prefix,
    )


class _Targets:
    """A network's parameters and saved buffers, each once and under its first name, and all names that it has."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.first_name: dict[str, str] = {}
        by_identity: dict[int, str] = {}
        for name, tensor in unwrap(model).state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):  # extra state may be anything
                name = plain_name(name)
                self.first_name[name] = by_identity.setdefault(id(tensor), name)
                self.tensors.setdefault(self.first_name[name], tensor)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def fit(self, names: Mapping[str, str], files: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
        """Network -> file where name, shape and kind of number agree; network -> reason where only the name does."""
        pairs: dict[str, str] = {}
        refused: dict[str, str] = {}
        for file, name in names.items():
            own = self.first_name.get(name)
            if own is None:
                continue
            reason = _misfit(files[file], self.tensors[own])
            if reason is None and own in pairs and not torch.equal(files[file], files[pairs[own]]):
                reason = f"{pairs[own]} and {file} of the file differ, and are one tensor here"
            if reason is None:
                pairs.setdefault(own, file)
            else:
                refused.setdefault(own, reason)
        return {own: file for own, file in pairs.items() if own not in refused}, refused


def _misfit(tensor: Tensor, target: Tensor) -> str | None:
    if tensor.shape != target.shape:
        return f"shape {tuple(tensor.shape)} against {tuple(target.shape)}"
    if tensor.dtype.is_floating_point != target.dtype.is_floating_point or tensor.is_complex() != target.is_complex():
        return f"{tensor.dtype} against {target.dtype}"
    return None


def _renamed(files: Mapping[str, Tensor], rename: Rename | None) -> dict[str, str]:
    """Name in the file -> name that it is to have."""
    if rename is None:
        return {file: file for file in files}
    new = {file: rename(file) if callable(rename) else rename.get(file, file) for file in files}
    names = {file: name for file, name in new.items() if name is not None}
    by_name: dict[str, str] = {}
    for file, name in names.items():
        if by_name.setdefault(name, file) != file:
            raise WeightsError(f"rename gives {by_name[name]} and {file} one name, {name}; names must stay apart")
    return names


def _with_best_prefix(
    names: dict[str, str], files: Mapping[str, Tensor], targets: _Targets
) -> tuple[dict[str, str], str]:
    """The names behind another prefix, if that is the only one to fit half of the smaller side; else as they are."""
    enough = min(len(_once(files)), len(targets.tensors)) / 2

    def fitting(drop: str, add: str) -> tuple[dict[str, str], frozenset[tuple[str, str]]]:
        changed = {file: add + name[len(drop) :] for file, name in names.items() if name.startswith(drop)}
        owns = ((targets.first_name.get(name), file) for file, name in changed.items())
        return changed, frozenset(
            (own, file) for own, file in owns if own and targets.shapes[own] == tuple(files[file].shape)
        )

    if len(fitting("", "")[1]) >= enough:
        return names, ""
    best: dict[frozenset[tuple[str, str]], tuple[dict[str, str], str]] = {}
    for drop, add in product(_prefixes(names, enough), _prefixes(targets.first_name, enough)):
        changed, pairs = fitting(drop, add)
        most = max(map(len, best), default=0)
        if len(pairs) >= max(enough, most, 1):
            best = {key: value for key, value in best.items() if len(key) == len(pairs)}
            # The rest of the file keeps its names: it may be a head that stands beside.
            best[pairs] = ({**names, **changed}, f"{drop}* -> {add}*")
    return next(iter(best.values())) if len(best) == 1 else (names, "")


def _prefixes(names: Iterable[str], enough: float) -> list[str]:
    """Paths of one and two parts that at least so many names have before theirs, and none."""
    counts = {"": 0}
    for name in names:
        parts = name.split(".")[:-1]
        for depth in (1, 2):
            if len(parts) >= depth:
                path = ".".join(parts[:depth]) + "."
                counts[path] = counts.get(path, 0) + 1
    return [path for path, count in counts.items() if not path or count >= enough]


def _once(files: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's tensors; those that share their memory stand under the first name."""
    first: dict[object, str] = {}
    for name, tensor in files.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        first.setdefault(place, name)
    return {name: tuple(files[name].shape) for name in first.values()}


def _unused(
    files: Mapping[str, Tensor],
    names: Mapping[str, str],
    pairs: Mapping[str, str],
    refused: Mapping[str, str],
    targets: _Targets,
) -> dict[str, str]:
    used = {files[file].data_ptr() for file in pairs.values()} - {0}
    unused = {}
    for file, tensor in files.items():
        own = targets.first_name.get(names.get(file, ""))
        if file in pairs.values() or own in pairs or tensor.data_ptr() in used:
            continue
        unused[file] = refused.get(own, "not in network") if own else "not in network"
    return unused


def _nothing_fits(targets: _Targets, files: Mapping[str, Tensor], refused: Mapping[str, str], *, in_doubt: bool) -> str:
    if refused:
        return f"no tensor of the weights fits the network: {_some(f'{own} ({why})' for own, why in refused.items())}"
    order = "order and shapes leave a doubt which is which" if in_doubt else "order and shapes do not agree either"
    return (
        f"the weights belong to another architecture: the file names {_some(files)}; the network names "
        f"{_some(targets.tensors)}; {order}. If they do belong together, say which name is which: "
        "rename= in Python, --rename where a command has it"
    )


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    shown = ", ".join(islice(listed, 4))
    return f"{shown} and {len(listed) - 4} more" if len(listed) > 4 else shown or "nothing"

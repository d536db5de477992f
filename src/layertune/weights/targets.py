"""The two sides of a loading: the tensors of a network, and those of a file under the names that they are to have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from layertune.errors import WeightsError
from layertune.layers.names import modules_by_name, plain_name, unwrap
from layertune.weights.structure import Shapes, module_of

__all__ = ["Fit", "Rename", "Source", "Targets"]

Rename = Mapping[str, str] | Callable[[str], str | None]


class Source:
    """The tensors of a file, and the name that each one is to have in the network.

    Args:
        weights: Name -> tensor, as ``read_weights`` returns them.

    Attributes:
        tensors: Name in the file, without what ``torch.compile`` puts into it -> tensor.
        names: Name in the file -> name that the network may know it by. Tensors without a name are not offered.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.tensors = {plain_name(name): tensor for name, tensor in weights.items()}
        self.names = {name: name for name in self.tensors}

    def rename(self, rename: Rename) -> None:
        """Give the tensors the names that a user says.

        Raises:
            WeightsError: Two tensors would get one name.
        """
        new = {file: rename(name) if callable(rename) else rename.get(name, name) for file, name in self.names.items()}
        self.names = {file: name for file, name in new.items() if name is not None}
        first: dict[str, str] = {}
        for file, name in self.names.items():
            if first.setdefault(name, file) != file:
                raise WeightsError(f"rename gives {first[name]} and {file} one name, {name}; names must stay apart")

    @property
    def shapes(self) -> Shapes:
        """The shapes of the tensors that have a name; tensors that share their memory are listed once."""
        first: dict[object, str] = {}
        for name in self.names:
            first.setdefault(self.place(name), name)
        return {name: tuple(self.tensors[name].shape) for name in first.values()}

    def place(self, name: str) -> object:
        """Return where in memory a tensor is, equal for two names of one tensor; its name if that cannot be known."""
        tensor = self.tensors[name]
        if tensor.layout is not torch.strided or tensor.numel() == 0 or tensor.is_meta:
            return name
        # A view that is conjugated or negated lazily shares its memory with a tensor of other values.
        return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()


@dataclass(frozen=True)
class Fit:
    """What fits by name.

    Attributes:
        pairs: Name in the network -> name in the file, where shape and kind of number agree too.
        misfits: Name in the network -> name in the file, where only the names agree.
        reasons: Name in the network -> why the tensor of this name does not fit.
    """

    pairs: dict[str, str]
    misfits: dict[str, str]
    reasons: dict[str, str]


class Targets:
    """The parameters and saved buffers of a network, each one once and under its first name.

    Args:
        model: The network, also inside ``torch.compile`` or DDP.

    Attributes:
        tensors: The tensors by their first names.
        first_name: Every name, aliases included -> first name.
        shapes: The shapes of the tensors by their first names.
        modules: The network's modules by name.

    Raises:
        WeightsError: A tensor cannot take values yet, or lies on several devices.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.first_name: dict[str, str] = {}
        by_identity: dict[int, str] = {}
        for name, tensor in unwrap(model).state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):  # extra state may be anything
                name = plain_name(name)
                _require_memory(name, tensor)
                self.first_name[name] = by_identity.setdefault(id(tensor), name)
                self.tensors.setdefault(self.first_name[name], tensor)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        self.modules = modules_by_name(model)

    def owner(self, own: str) -> nn.Module:
        """Return the module that owns a tensor."""
        return self.modules[module_of(own)]

    def last_parameter(self) -> str:
        """Return the name of the last parameter, which the head owns in most networks; empty without parameters."""
        return next((own for own in reversed(self.tensors) if isinstance(self.tensors[own], nn.Parameter)), "")

    def fit(self, source: Source) -> Fit:
        """Compare what has the same name on both sides."""
        fit = Fit({}, {}, {})
        for file, name in source.names.items():
            own = self.first_name.get(name)
            if own is None:
                continue
            reason = self.misfit(own, source.tensors[file])
            other = fit.pairs.get(own)
            if reason is None and other and not torch.equal(source.tensors[file], source.tensors[other]):
                reason = f"{other} and {file} of the file differ, and are one tensor here"
            if reason is None:
                fit.pairs.setdefault(own, file)
            else:
                fit.misfits.setdefault(own, file)
                fit.reasons.setdefault(own, reason)
        for own in fit.reasons:
            fit.pairs.pop(own, None)
        return fit

    def differs_in_shape_alone(self, own: str, tensor: Tensor) -> bool:
        """Whether a tensor could take the place of the network's if it had another shape."""
        target = self.tensors[own]
        return tensor.shape != target.shape and _misfit_of_kind(tensor, target) is None

    def misfit(self, own: str, tensor: Tensor) -> str | None:
        """Return why a tensor cannot take the place of the network's; ``None`` if it can."""
        target = self.tensors[own]
        if tensor.shape != target.shape:
            return f"shape {tuple(tensor.shape)} against {tuple(target.shape)}"
        return _misfit_of_kind(tensor, target)


def _misfit_of_kind(tensor: Tensor, target: Tensor) -> str | None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return "sparse, quantized, or without values in the file"
    floating = tensor.dtype.is_floating_point == target.dtype.is_floating_point
    if not floating or tensor.is_complex() != target.is_complex():
        return f"{tensor.dtype} against {target.dtype}"
    return None


def _require_memory(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise WeightsError(f"the network's {name} has no shape yet; run a batch through the network first")
    if tensor.is_meta:
        raise WeightsError(f"the network's {name} is on the meta device; call to_empty(device=...) first")
    if hasattr(tensor, "device_mesh"):
        raise WeightsError(f"the network's {name} is sharded; load weights before fully_shard or parallelize_module")

"""What the optimizer's last step did to each parameter: measured, summed with gradients, stretched, forgotten."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Displacement", "pair_sums"]

Groups = Sequence[dict[str, Any]]
Sections = Sequence[Sequence[int]]


class Displacement:
    """Measures a step as d = theta_after - theta_before, in one buffer the size of the parameters.

    A measured step lives in the param groups, as ``group["meta_step"]`` with the ``lr`` it was made with and the
    ``displacement`` by index of the parameter, so it is saved with the optimizer and a resumed run goes on exactly.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}
        self._open: list[tuple[int, int, Tensor, Tensor]] = []

    def start(self, groups: Groups) -> None:
        """Remember where the parameters that have a gradient stand."""
        self._open = [
            (number, index, parameter, self._buffer(parameter))
            for number, group in enumerate(groups)
            for index, parameter in enumerate(group["params"])
            if parameter.grad is not None
        ]
        if self._open:
            here = [local(parameter.detach()) for _, _, parameter, _ in self._open]
            torch._foreach_copy_([buffer for _, _, _, buffer in self._open], here)

    def finish(self, groups: Groups, sections: Sections, factors: Tensor | None) -> None:
        """Turn what was remembered into the displacement, and put it into the groups.

        Args:
            groups: the optimizer's param groups.
            sections: for each group the section of each parameter.
            factors: one factor a section that the step is to be stretched by, or ``None`` where it has its length.
        """
        for number, index, parameter, buffer in self._open:
            here = local(parameter.detach())
            torch.sub(here, buffer, out=buffer)
            if factors is not None:
                factor = factors[sections[number][index]]
                here.addcmul_(buffer, (factor - 1).to(buffer.dtype))
                buffer.mul_(factor.to(buffer.dtype))
            step = groups[number].setdefault("meta_step", {"lr": _own(groups[number]["lr"]), "displacement": {}})
            step["displacement"][index] = buffer
        self._open = []

    def stretch(self, groups: Groups, sections: Sections, amounts: Tensor) -> None:
        """Move the parameters on by ``amounts`` (one a section) of the step: theta += amount d."""
        for group, section_of in zip(groups, sections, strict=True):
            for index, step in _steps(group):
                here = local(group["params"][index].detach())
                here.addcmul_(step, amounts[section_of[index]].to(step.dtype))

    def forget(self, groups: Groups) -> None:
        """Drop the measured step; its memory serves the next one."""
        for group in groups:
            group.pop("meta_step", None)

    def adopt(self, groups: Groups) -> None:
        """Take over a measured step that was loaded: to where its parameters live."""
        for group in groups:
            for index, step in _steps(group):
                here = local(group["params"][index].detach())
                group["meta_step"]["displacement"][index] = step.to(here.device, here.dtype)

    def _buffer(self, parameter: Tensor) -> Tensor:
        here = local(parameter.detach())
        buffer = self._buffers.get(id(parameter))
        if buffer is None or buffer.shape != here.shape or buffer.dtype != here.dtype or buffer.device != here.device:
            buffer = self._buffers[id(parameter)] = torch.empty_like(here)
        return buffer


def pair_sums(groups: Groups, sections: Sections, *, like: Tensor, norms: bool) -> Tensor:
    """Sums over each section of the products of gradient g and displacement d.

    Args:
        groups: param groups with a measured step.
        sections: for each group the section of each parameter.
        like: a tensor with one column a section, and the device and dtype of the result.
        norms: whether the squared lengths are needed too.

    Returns:
        Rows <g, d>, |g|^2, |d|^2 (zero if not asked for), one column a section. Sums over shards are reduced, so every
        rank has the same numbers, bit for bit.
    """
    whole = _Sums(like)
    sharded: dict[tuple[Any, tuple[int, ...]], _Sums] = {}
    for number, group in enumerate(groups):
        for index, step in _steps(group):
            parameter = group["params"][index]
            if parameter.grad is not None or norms:
                shards = _shards(parameter)
                sums = sharded.setdefault(shards, _Sums(like)) if shards else whole
                # No gradient is a gradient of 0, and the step still counts in its length.
                grad = torch.zeros_like(step) if parameter.grad is None else local(parameter.grad.detach())
                sums.add(sections[number][index], grad.to_dense() if grad.is_sparse else grad, step, norms=norms)
    total = whole.total()
    for (mesh, dimensions), sums in sharded.items():
        part = sums.total()
        for dimension in dimensions:
            torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
        total += part
    return total


class _Sums:
    """Inner products by section, gathered first and added up in one product at the end."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._section_of: list[int] = []
        self._rows: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def add(self, section: int, grad: Tensor, step: Tensor, *, norms: bool) -> None:
        self._section_of.append(section)
        pairs = ((grad, step), (grad, grad), (step, step)) if norms else ((grad, step),)
        for row, (a, b) in zip(self._rows, pairs, strict=False):
            row.append(_dot(a, b))

    def total(self) -> Tensor:
        sections = self._like.shape[1]
        total = self._like.new_zeros(3, sections)
        for row, dots in enumerate(self._rows):
            if dots:
                # In a fixed order on every device and rank, which an atomic index_add is not.
                members = torch.eye(sections)[self._section_of]
                total[row] = torch.stack(dots).to(total.dtype) @ members.to(total, non_blocking=True)
        return total


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a distributed tensor; any other tensor itself."""
    # By its method: importing DTensor takes a second, and nobody has one who has not imported it.
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard


def _shards(parameter: Tensor) -> tuple[Any, tuple[int, ...]] | None:
    """The mesh and its dimensions that a parameter is split over; whole ones are equal on all ranks."""
    placements: Sequence[Any] = getattr(parameter, "placements", ())
    dimensions = tuple(i for i, placement in enumerate(placements) if placement.is_shard())
    # Only a DTensor has placements, and it has a mesh; Tensor, as which it is typed here, has neither.
    return (cast(Any, parameter).device_mesh, dimensions) if dimensions else None


def _steps(group: dict[str, Any]) -> list[tuple[int, Tensor]]:
    return list(group.get("meta_step", {}).get("displacement", {}).items())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product, in at least float32; contiguous tensors need no temporary."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.dtype in (torch.float16, torch.bfloat16) or a.dtype != b.dtype:
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _own(lr: float | Tensor) -> float | Tensor:
    return lr.detach().clone().reshape(()) if isinstance(lr, Tensor) else lr

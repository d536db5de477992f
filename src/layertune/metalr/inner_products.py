"""Inner products of the meta gradient and the last step, summed over layers and over ranks."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from layertune.metalr.correcting.displacement import Groups, Sections, Steps, local

__all__ = ["Shards", "dot", "inner_products", "shards_of", "summed_over_ranks"]

Shards = tuple[Any, tuple[int, ...]] | None
"""The mesh of a sharded parameter and its dimensions that the parameter is split over; ``None`` for a whole one."""


def inner_products(groups: Groups, sections: Sections, steps: Steps, *, like: Tensor, norms: bool) -> Tensor:
    """Sum the products of meta gradient g and displacement D over each section.

    Args:
        groups: Param groups with the meta gradient.
        sections: The section of each parameter, by group.
        steps: The displacements of the parameters.
        like: A tensor with one column for each section, and the device and dtype of the result.
        norms: Whether the squared lengths are needed too.

    Returns:
        Rows <g, D>, |g|^2, |D|^2 (zero without ``norms``), one column for each section. Sums over shards are reduced,
        so every rank has the same numbers, bit for bit.
    """
    whole = _Sums(like)
    sharded: dict[tuple[Any, tuple[int, ...]], _Sums] = {}
    for number, index, step in steps:
        parameter = groups[number]["params"][index]
        if parameter.grad is not None or norms:
            shards = shards_of(parameter)
            sums = sharded.setdefault(shards, _Sums(like)) if shards else whole
            # No gradient is a gradient of 0, and the step still counts in its length.
            grad = torch.zeros_like(step) if parameter.grad is None else local(parameter.grad.detach())
            sums.add(sections[number][index], grad.to_dense() if grad.is_sparse else grad, step, norms=norms)
    total = whole.total()
    for held, sums in sharded.items():
        part = sums.total()
        _all_reduce(part, held)
        total += part
    return total


def summed_over_ranks(summands: dict[Shards, list[Tensor]], *, like: Tensor) -> Tensor:
    """Add up tensors of one shape, in a fixed order, and reduce over the ranks what belongs to shards.

    Args:
        summands: The tensors by what ``shards_of`` returns for their parameter. Without any, the result is 0.
        like: A tensor of the dtype and device of the result.
    """
    parts = []
    for shards, own in summands.items():
        part = torch.stack(own).to(like).sum(dim=0)
        if shards is not None:
            _all_reduce(part, shards)
        parts.append(part)
    return torch.stack(parts).sum(dim=0) if parts else like.new_zeros(())


def _all_reduce(part: Tensor, shards: tuple[Any, tuple[int, ...]]) -> None:
    mesh, dimensions = shards
    for dimension in dimensions:
        torch.distributed.all_reduce(part, group=mesh.get_group(dimension))


class _Sums:
    """Collect inner products by section and add them up in one product at the end."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._section_of: list[int] = []
        self._rows: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def add(self, section: int, grad: Tensor, step: Tensor, *, norms: bool) -> None:
        self._section_of.append(section)
        pairs = ((grad, step), (grad, grad), (step, step)) if norms else ((grad, step),)
        for row, (a, b) in zip(self._rows, pairs, strict=False):
            row.append(dot(a, b))

    def total(self) -> Tensor:
        sections = self._like.shape[1]
        total = self._like.new_zeros(3, sections)
        for row, dots in enumerate(self._rows):
            if dots:
                # In a fixed order on every device and rank, which an atomic index_add is not.
                members = torch.eye(sections)[self._section_of]
                total[row] = torch.stack(dots).to(total.dtype) @ members.to(total, non_blocking=True)
        return total


def shards_of(parameter: Tensor) -> Shards:
    """Return the mesh and its dimensions that a parameter is split over; whole ones are equal on all ranks."""
    placements: Sequence[Any] = getattr(parameter, "placements", ())
    dimensions = tuple(i for i, placement in enumerate(placements) if placement.is_shard())
    # Only a DTensor has placements, and it has a mesh. Its type here, Tensor, has neither.
    return (cast(Any, parameter).device_mesh, dimensions) if dimensions else None


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product, in at least float32. Contiguous tensors need no temporary."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.dtype in (torch.float16, torch.bfloat16) or a.dtype != b.dtype:
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1))

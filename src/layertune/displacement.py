"""What the optimizer's last step did to each parameter: measured, summed with gradients, stretched, forgotten."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["Displacement", "pair_sums"]

Groups = Sequence[dict[str, Any]]


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

    def finish(self, groups: Groups, factors: Sequence[Tensor] | None) -> None:
        """Turn what was remembered into the displacement, and put it into the groups.

        Args:
            groups: the optimizer's param groups.
            factors: one factor a group that the step is to be stretched by, or ``None`` where it has its length.
        """
        for number, index, parameter, buffer in self._open:
            here = local(parameter.detach())
            torch.sub(here, buffer, out=buffer)
            if factors is not None:
                here.addcmul_(buffer, (factors[number] - 1).to(buffer.dtype))
                buffer.mul_(factors[number].to(buffer.dtype))
            step = groups[number].setdefault("meta_step", {"lr": _own(groups[number]["lr"]), "displacement": {}})
            step["displacement"][index] = buffer
        self._open = []

    def stretch(self, groups: Groups, amounts: Sequence[Tensor]) -> None:
        """Move the parameters on by ``amounts`` (one a group) of the step: theta += amount d."""
        for group, amount in zip(groups, amounts, strict=True):
            for index, step in _steps(group):
                here = local(group["params"][index].detach())
                here.addcmul_(step, amount.to(step.dtype))

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


def pair_sums(groups: Groups, *, like: Tensor, norms: bool) -> Tensor:
    """Sums over each group of the products of gradient g and displacement d.

    Args:
        groups: param groups with a measured step.
        like: a tensor with the device and dtype of the result.
        norms: whether the squared lengths are needed too.

    Returns:
        Rows <g, d>, |g|^2, |d|^2 (zero if not asked for), one column a group. Sums over shards are reduced, so every
        rank has the same numbers, bit for bit.
    """
    sums = torch.zeros(3, len(groups), dtype=like.dtype, device=like.device)
    sharded: dict[tuple[Any, tuple[int, ...]], Tensor] = {}
    for number, group in enumerate(groups):
        for index, step in _steps(group):
            parameter = group["params"][index]
            if parameter.grad is None:
                continue
            into = _bucket(parameter, sums, sharded)
            grad = local(parameter.grad.detach())
            into[0, number] += _dot(grad, step)
            if norms:
                into[1, number] += _dot(grad, grad)
                into[2, number] += _dot(step, step)
    for (mesh, dimensions), part in sharded.items():
        for dimension in dimensions:
            torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
        sums += part
    return sums


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a distributed tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _bucket(parameter: Tensor, sums: Tensor, sharded: dict[tuple[Any, tuple[int, ...]], Tensor]) -> Tensor:
    """Where a parameter's sums go: whole ones are equal on all ranks, shards have yet to be added up."""
    if not isinstance(parameter, DTensor):
        return sums
    dimensions = tuple(i for i, placement in enumerate(parameter.placements) if placement.is_shard())
    return sharded.setdefault((parameter.device_mesh, dimensions), torch.zeros_like(sums)) if dimensions else sums


def _steps(group: dict[str, Any]) -> list[tuple[int, Tensor]]:
    return list(group.get("meta_step", {}).get("displacement", {}).items())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product, in at least float32; contiguous tensors need no temporary."""
    if a.dtype in (torch.float16, torch.bfloat16) or a.dtype != b.dtype:
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _own(lr: float | Tensor) -> float | Tensor:
    return lr.detach().clone() if isinstance(lr, Tensor) else lr

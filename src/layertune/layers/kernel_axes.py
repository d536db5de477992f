"""The axis along which an operation's kernels lie, followed from its output to the norm that scales them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from layertune.layers.norm_layers import gamma_name

__all__ = ["KernelAxes"]

# These compute each value from the values at the same place, so the kernels stay where they are.
POINTWISE = {"_to_copy", "add", "addcmul", "div", "mul", "neg", "pow", "rsub", "sqrt", "square", "sub"}


class KernelAxes:
    """Follow, tensor by tensor, the axis along which an operation's kernels lie, and compare it with a norm's gammas.

    Equal counts do not tell that gamma c scales kernel c: ``BatchNorm1d`` on the output (N, L, C) of a linear layer has
    L gammas, and with L = C all counts agree.

    Attributes:
        misaligned: The path of each norm whose gammas do not scale the kernels of the operation that it reads, to the
            reason.
    """

    def __init__(self) -> None:
        self.misaligned: dict[str, str] = {}
        self._axis: dict[int, int] = {}
        self._open: set[str] = set()  # norms whose own forward has not met its gamma yet
        self._known: set[str] = set()  # norms of torch, whose forward may reshape the input for its own purposes

    def begin(self, output: Tensor, axis: int) -> None:
        """Note that the kernels of an operation lie along ``axis`` of its output."""
        self._axis[id(output)] = axis % output.ndim

    def follow(self, operator: str, args: Sequence[Any], before: Tensor, outputs: Sequence[Tensor]) -> None:
        """Hand the axis of a tensor on to the outputs of an operator, where it can be followed."""
        axis = self._axis.get(id(before))
        for output in outputs:
            self._axis.pop(id(output), None)
            moved = None if axis is None else _moved_axis(operator, args, axis, before, output)
            if moved is not None:
                self._axis[id(output)] = moved

    def enter_norm(self, path: str, norm: nn.Module, values: Tensor) -> None:
        """Compare the input of a norm with its gammas, at once if the forward is torch's own, else on the way."""
        if not type(norm).forward.__module__.startswith("torch.nn.modules."):
            self._open.add(path)
        elif gamma_name(norm) is not None:
            self._known.add(path)
            self._compare(path, self._axis.get(id(values)), _torch_gamma_axis(norm, values))

    def scale(self, path: str, operator: str, args: Sequence[Any], values: Tensor, gamma: Tensor) -> None:
        """Take note of the operator that multiplies by the gammas of a norm, or of a function that normalises."""
        self._open.discard(path)
        if path not in self._known:
            self._compare(path, self._axis.get(id(values)), _operator_gamma_axis(operator, args, values, gamma))

    def leave_norm(self, path: str) -> None:
        """Refuse a norm whose forward has not shown how its gammas are used."""
        if path in self._open:
            self._open.discard(path)
            self._compare(path, None, None)

    def _compare(self, path: str, kernels: int | None, gammas: int | None) -> None:
        if kernels is None or gammas is None:
            self.misaligned[path] = (
                "which kernel a gamma scales cannot be followed: the kernels' axis is split, merged or rearranged on "
                "the way, or the gammas scale more than one axis"
            )
        elif kernels != gammas:
            self.misaligned[path] = (
                f"its gammas scale axis {gammas} of its input, and the kernels that it reads lie along axis {kernels}"
            )


def _torch_gamma_axis(norm: nn.Module, values: Tensor) -> int | None:
    """Return the axis that the gammas of one of torch's own norms scale."""
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return values.ndim - 1 if len(norm.normalized_shape) == 1 else None
    unbatched = isinstance(norm, nn.modules.instancenorm._InstanceNorm) and values.ndim == norm._get_no_batch_dim()
    return 0 if unbatched else 1


def _operator_gamma_axis(operator: str, args: Sequence[Any], values: Tensor, gamma: Tensor) -> int | None:
    """Return the axis of an operator's input that the gammas scale."""
    if "layer_norm" in operator or "rms_norm" in operator:
        return values.ndim - 1 if len(args[1]) == 1 else None
    if "norm" in operator:
        return 1  # batch and group norms
    scaled = [axis for axis, size in enumerate(gamma.shape) if size == gamma.numel()]
    # Shapes are aligned at their ends. Of a single gamma, no axis is known.
    return values.ndim - gamma.ndim + scaled[0] if len(scaled) == 1 and gamma.ndim <= values.ndim else None


def _moved_axis(operator: str, args: Sequence[Any], axis: int, before: Tensor, after: Tensor) -> int | None:
    """Return where ``axis`` of an operator's input is in its output; ``None`` where that is not known."""
    if operator == "permute":
        return [int(dim % before.ndim) for dim in args[1]].index(axis)
    if operator == "transpose":
        first, second = (int(dim % before.ndim) for dim in args[1:3])
        return {first: second, second: first}.get(axis, axis)
    if operator == "t":
        return before.ndim - 1 - axis
    if operator == "unsqueeze":
        return axis + int(args[1] % after.ndim <= axis)
    if operator in POINTWISE:
        return axis + after.ndim - before.ndim if after.shape[after.ndim - before.ndim :] == before.shape else None
    return _reshaped_axis(axis, before.shape, after.shape)


def _reshaped_axis(axis: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Return the axis of the same length with as many values before it, as reshaping keeps the order of values.

    Example:
        >>> _reshaped_axis(2, (4, 9, 6), (36, 6)), _reshaped_axis(1, (4, 6, 3, 3), (4, 2, 3, 3, 3))
        (1, None)
    """
    for place, size in enumerate(after):
        if size == before[axis] and _product(after[:place]) == _product(before[:axis]):
            return place
    return None


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product

"""Kernels of other sizes and dimensions that give the same output where the input is constant along the new axes."""

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor, nn

from layertune.layers.convolutions import TransposedConvolution

__all__ = ["inflate", "resize_kernel"]


def inflate(tensor: Tensor, shape: Sequence[int], module: nn.Module) -> Tensor | None:
    """Repeat a 2D kernel along the depth of a 3D one, divided by the number of repetitions (I3D).

    Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, sec. 2.4.

    Args:
        tensor: The 2D kernel, of shape (outputs, inputs, height, width).
        shape: The shape of the 3D kernel, (outputs, inputs, depth, height, width).
        module: The module that owns the 3D kernel.

    Returns:
        The 3D kernel with the depth of ``shape`` and the other sizes of ``tensor``; ``None`` if it cannot be made.

    Example:
        >>> import torch
        >>> inflate(torch.ones(8, 1, 3, 3), (8, 1, 3, 3, 3), nn.Conv3d(1, 8, 3))[0, 0, :, 0, 0]
        tensor([0.3333, 0.3333, 0.3333])
    """
    if tensor.dim() != 4 or len(shape) != 5:
        return None
    return _repeat(tensor.unsqueeze(2), 2, shape[2], module)


def resize_kernel(tensor: Tensor, shape: Sequence[int], module: nn.Module) -> Tensor | None:
    """Sum a kernel over the axes that have size 1 now, and repeat it along those that had size 1.

    The sum keeps the output where the input is constant along the axis, as the mean would not: 3 taps become one. A
    transposed convolution whose kernel is as large as its stride, as in a U-Net's decoder, applies one tap to each
    output, so there it is the mean.

    Args:
        tensor: The kernel, of shape (outputs, inputs, ...).
        shape: The shape of the network's kernel, with as many dimensions.
        module: The module that owns the kernel.

    Returns:
        A kernel with the spatial sizes of ``shape``; ``None`` if it cannot be made.

    Example:
        >>> import torch
        >>> resize_kernel(torch.ones(8, 4, 3, 3, 3), (8, 4, 1, 3, 3), nn.Conv3d(4, 8, (1, 3, 3)))[0, 0, :, 0, 0]
        tensor([3.])
    """
    if tensor.dim() != len(shape) or tensor.dim() < 3 or tensor.shape[2:] == tuple(shape[2:]):
        return None
    kernel: Tensor | None = tensor
    for axis in range(2, tensor.dim()):
        if kernel is not None and kernel.shape[axis] != shape[axis]:
            kernel = _resize_axis(kernel, axis, shape[axis], module)
    return kernel


def _resize_axis(tensor: Tensor, axis: int, size: int, module: nn.Module) -> Tensor | None:
    if tensor.shape[axis] == 1:
        return _repeat(tensor, axis, size, module)
    if size != 1:
        return None
    if not isinstance(module, TransposedConvolution):
        return tensor.sum(axis, keepdim=True)
    return tensor.mean(axis, keepdim=True) if _stride(module, axis) == 1 else None


def _repeat(tensor: Tensor, axis: int, size: int, module: nn.Module) -> Tensor | None:
    taps = Fraction(size)
    if isinstance(module, TransposedConvolution):
        # Every output of a transposed convolution is the sum of kernel / stride taps.
        taps /= _stride(module, axis)
        if taps.denominator != 1:
            return None
    return tensor.repeat_interleave(size, axis) / int(taps)


def _stride(module: nn.Module, axis: int) -> int:
    stride = getattr(module, "stride", 1)
    return int(stride[axis - 2] if isinstance(stride, tuple) else stride)

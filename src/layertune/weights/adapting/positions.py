"""Positional embeddings for images or windows of another size."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layertune.layers.convolutions import Convolution

__all__ = ["expected_grid", "is_positional", "resize_positions"]

TABLE = "relative_position_bias_table"
MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def is_positional(name: str) -> bool:
    """Whether a parameter is a positional embedding or a table of relative positions, by its name."""
    last = name.rpartition(".")[2]
    return ("pos" in last and "emb" in last) or last == TABLE


def expected_grid(name: str, modules: Mapping[str, nn.Module]) -> tuple[tuple[int, ...] | None, int]:
    """Find the grid of a network's embeddings, and the number of dimensions of its images.

    Args:
        name: The name of the embeddings in the network.
        modules: The network's modules by name.

    Returns:
        The sides of the grid, of the window's offsets for a table of relative positions, or ``None`` if no module says
        it (timm's and MONAI's windows have a ``window_size``, timm's patch embeddings a ``grid_size``); and 2 or 3.
    """
    convolutions = [module for module in modules.values() if isinstance(module, Convolution)]
    dims = len(convolutions[0].kernel_size) if convolutions else 2
    if name.endswith(TABLE):
        window = getattr(modules[name.rpartition(".")[0]], "window_size", None)
        return (tuple(2 * side - 1 for side in window), len(window)) if isinstance(window, tuple) else (None, dims)
    grids = {grid for module in modules.values() if isinstance(grid := getattr(module, "grid_size", None), tuple)}
    return (grids.pop(), dims) if len(grids) == 1 else (None, dims)


def resize_positions(tensor: Tensor, shape: Sequence[int], grid: Sequence[int] | None, dims: int) -> Tensor | None:
    """Interpolate positional embeddings to another grid.

    Supports (1, tokens, width) and (tokens, width), also with tokens in front that have no place in the image (a class
    token); tables of relative positions (offsets, heads); and embeddings that have the grid as axes, (1, width, ...) or
    (1, ..., width). The old grid has equal sides.

    Args:
        tensor: The embeddings of the file, in one of the shapes above.
        shape: The shape of the network's embeddings.
        grid: The wanted grid, if the network says it; otherwise it has equal sides.
        dims: The number of the image's dimensions.

    Returns:
        The embeddings in the wanted shape, with bicubic interpolation in 2D and trilinear in 3D; ``None`` if the grids
        cannot be known.

    Example:
        >>> resize_positions(torch.zeros(1, 1 + 7 * 7, 8), (1, 1 + 9 * 9, 8), None, 2).shape
        torch.Size([1, 82, 8])
    """
    if tensor.dim() != len(shape):
        return None
    if tensor.dim() == dims + 2 and dims > 1:
        return _resize_axes(tensor, shape, dims)
    if tensor.dim() > 3 or tensor.shape[-1] != shape[-1] or tensor.shape[:-2] != tuple(shape[:-2]):
        return None
    grids = _tokens_and_grids(tensor.shape[-2], shape[-2], grid, dims)
    if grids is None:
        return None
    front, old, new = grids
    places = tensor[..., front:, :].reshape(-1, *old, tensor.shape[-1]).movedim(-1, 1)
    resized = (
        _interpolate(places, new, antialias=tensor.dim() > 2)
        .movedim(1, -1)
        .reshape(*tensor.shape[:-2], prod(new), tensor.shape[-1])
    )
    return torch.cat([tensor[..., :front, :], resized], -2)


def _resize_axes(tensor: Tensor, shape: Sequence[int], dims: int) -> Tensor | None:
    if tensor.shape[:2] == tuple(shape[:2]):
        return _interpolate(tensor, shape[2:])
    if tensor.shape[0] == shape[0] and tensor.shape[-1] == shape[-1]:
        return _interpolate(tensor.movedim(-1, 1), shape[1 : 1 + dims]).movedim(1, -1)
    return None


def _tokens_and_grids(
    old: int, new: int, grid: Sequence[int] | None, dims: int
) -> tuple[int, Sequence[int], Sequence[int]] | None:
    """Return the number of tokens in front and both grids, if only one number is possible."""
    if grid is not None and prod(grid) <= new:
        front = new - prod(grid)
        sides = _equal_sides(old - front, dims)
        return None if sides is None else (front, sides, grid)
    fits = [(front, _equal_sides(old - front, dims), _equal_sides(new - front, dims)) for front in range(3)]
    known = [(front, before, after) for front, before, after in fits if before and after]
    return known[0] if len(known) == 1 else None


def _equal_sides(count: int, dims: int) -> tuple[int, ...] | None:
    side = round(max(count, 0) ** (1 / dims))
    return (side,) * dims if side > 1 and side**dims == count else None


def _interpolate(places: Tensor, grid: Sequence[int], *, antialias: bool = True) -> Tensor:
    """Interpolate (batch, width, ...) as timm does: in single precision, and tables of offsets without antialiasing."""
    mode = MODES[len(grid)]
    resized = F.interpolate(places.float(), size=list(grid), mode=mode, antialias=antialias and mode == "bicubic")
    return resized.to(places.dtype)

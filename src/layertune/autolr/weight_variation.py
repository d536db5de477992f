"""Weight variation: how far each layer moved in an epoch, whether that rises with depth, and targets for it."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.rates.attachment import group_layer_names

__all__ = ["first_target", "mended_target", "sorting_quality", "weight_variation", "weights_by_layer"]


@torch.no_grad()
def weight_variation(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return how far one layer's n weights moved, v = ||theta after - theta before||_2 / n (AutoLR, Ro and Choi 2021).

    Args:
        before: The layer's weights, without norms and biases.
        after: The same weights later, in the same order.

    Example:
        >>> weight_variation([torch.zeros(2, 2)], [torch.tensor([[3.0, 0.0], [4.0, 0.0]])])
        1.25
    """
    square = torch.stack([(b - a).double().square().sum() for a, b in zip(before, after, strict=True)]).sum()
    return math.sqrt(square.item()) / sum(weight.numel() for weight in before)


def sorting_quality(variations: Sequence[float]) -> float:
    """Return S = 1 - (2 / L^2) sum_k |k - r_k|, where layer r_k has the k-th smallest variation (k, r_k from 0).

    Args:
        variations: The variations of the L layers in order of depth. Of two equal ones the shallower counts as smaller.

    Returns:
        1 if they ascend with depth; 0 if they descend over an even number of layers.

    Example:
        >>> sorting_quality([1, 2, 3, 4]), sorting_quality([4, 3, 2, 1]), sorting_quality([1, 3, 2, 4])
        (1.0, 0.0, 0.75)
    """
    order = sorted(range(len(variations)), key=variations.__getitem__)
    return 1 - 2 / len(order) ** 2 * sum(abs(k - r) for k, r in enumerate(order))


def first_target(variations: Sequence[float], f_min: float, f_max: float) -> list[float]:
    """Return L evenly spaced values from f_min times the least variation to f_max times the largest, ascending.

    If the variations are so similar that the first value is the larger one, the two ends change places. Layers that did
    not move are ignored, because a target must be above 0.

    Args:
        variations: The variations of the layers in order of depth, at least one of them above 0.
        f_min: Factor on the least variation. AutoLR's authors use 2 or 3.
        f_max: Factor on the largest variation. AutoLR's authors use 0.4.

    Example:
        >>> first_target([1, 10, 5], f_min=2, f_max=0.4)
        [2.0, 3.0, 4.0]
    """
    moved = [variation for variation in variations if variation > 0]
    low, high = sorted((f_min * min(moved), f_max * max(moved)))
    step = (high - low) / max(len(variations) - 1, 1)
    return [low + index * step for index in range(len(variations))]


def mended_target(variations: Sequence[float]) -> list[float]:
    """Return the variations with each inversion corrected, from the middle layer outwards.

    Going down from layer L // 2, where w_i < w_{i-1}: w_{i-1} = w_i - delta; going up, where w_i > w_{i+1}: w_{i+1} =
    w_i + delta; with delta = (max v - min v) / (L - 1). A difference that is not above w_i / 2 becomes w_i / 2, since
    a target must be above 0.

    Args:
        variations: The variations of the L layers in order of depth, at least one of them above 0.

    Example:
        >>> mended_target([1, 6, 4, 2, 7])
        [1, 2.5, 4, 5.5, 7]
    """
    moved = min(variation for variation in variations if variation > 0)
    target = [max(variation, moved) for variation in variations]
    delta = (max(target) - min(target)) / max(len(target) - 1, 1)
    middle = len(target) // 2
    for deeper, layer in pairwise(range(middle, -1, -1)):
        if target[deeper] < target[layer]:
            target[layer] = max(target[deeper] - delta, target[deeper] / 2)
    for shallower, layer in pairwise(range(middle, len(target))):
        if target[shallower] > target[layer]:
            target[layer] = target[shallower] + delta
    return target


def weights_by_layer(optimizer: Optimizer) -> dict[str, list[nn.Parameter]]:
    """Return the weights that AutoLR measures, by layer, from the stem to the head.

    Raises:
        OptimizerError: There are fewer than four layers, groups without a depth, or a layer without weights.
    """
    groups = optimizer.param_groups
    if len(set(group_layer_names(groups))) < 4 or any("depth" not in group for group in groups):
        raise OptimizerError(
            "AutoLR sorts the layers between stem and classifier by depth, and needs at least two of them; this "
            f"optimizer has the layers {', '.join(dict.fromkeys(group_layer_names(groups)))}: build it from "
            "layertune.param_groups(model, layertune.map_layers(model, example_input), lr=...)"
        )
    weights: dict[str, list[nn.Parameter]] = {}
    for name, group in sorted(zip(group_layer_names(groups), groups, strict=True), key=lambda pair: pair[1]["depth"]):
        weights.setdefault(name, []).extend(p for p in group["params"] if p.ndim > 1)
    empty = [name for name, held in list(weights.items())[1:-1] if not held]
    if empty:
        raise OptimizerError(
            f"the layers {empty} have no weight of two or more dimensions to measure; map the network with a coarser "
            "granularity"
        )
    return weights

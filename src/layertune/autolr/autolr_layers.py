"""Which of an optimizer's weights AutoLR measures, in order of depth."""

from torch import nn
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.rates.attachment import group_layer_names

__all__ = ["weights_by_layer"]


def weights_by_layer(optimizer: Optimizer) -> dict[str, list[nn.Parameter]]:
    """The weights whose movement AutoLR measures, by layer, shallow to deep; the first is the stem, the last the head.

    Raises:
        OptimizerError: fewer than four layers, groups without a depth, or a layer without weights.
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

"""Auto-RGN: learning rates in proportion to the relative gradient norm of each layer."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.rates.attachment import LRMultiplier, group_layer_names
from layertune.rates.stand_in import StandIn

__all__ = ["BATCHES", "AutoRGN"]

NORMS = "rgn"
BATCHES = 5  # as in the published code


class AutoRGN(LRMultiplier):
    """Multiply each layer's rate by its relative gradient norm (Lee et al., ICLR 2023, surgical fine-tuning, Auto-RGN).

        RGN_j = ||g_j|| / ||theta_j||,  factor_j = RGN_j / max_k RGN_k

    g_j is the gradient of layer j and theta_j its weights. The layer with the largest relative gradient has the rate of
    the schedule, and all others a smaller one. The norms are averages over the last ``batches`` training gradients, the
    present one included, so there is no extra pass. Layers are those that the param groups name; a layer's groups count
    together. A layer whose weights are all 0 has the factor 1 and does not count in the maximum. A layer without a
    gradient keeps its factor.

    The published code differs: it measures 5 batches before each epoch, by passes of their own, takes each weight and
    each bias as a layer, leaves out the parameters of batch norms, and starts Adam afresh in each epoch.

    As with ``MetaLR`` the schedule keeps ``lr``. The averaged norms are saved with the optimizer's ``state_dict``. Each
    step waits for the device once.

    Args:
        optimizer: An optimizer over ``param_groups``; the paper uses Adam.
        batches: The number of training gradients that are averaged, >= 1. Default: 5.

    Raises:
        OptimizerError: ``batches`` is below 1, there is one layer only, or the learning rates are multiplied already.

    Example:
        >>> from torch import nn
        >>> from layertune import map_layers, param_groups
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> optimizer = torch.optim.SGD(param_groups(net, map_layers(net, torch.empty(2, 4)), lr=0.1))
        >>> auto_rgn = AutoRGN(optimizer)
        >>> net(torch.ones(2, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> max(auto_rgn.factors.values())
        1.0
    """

    def __init__(self, optimizer: Optimizer, *, batches: int = BATCHES) -> None:
        if batches < 1:
            raise OptimizerError(f"batches must be at least 1, not {batches}")
        if len(set(group_layer_names(optimizer.param_groups))) < 2:
            raise OptimizerError(
                "AutoRGN compares layers, and the param groups of this optimizer make up one; build them with "
                "layertune.param_groups(model, layers, lr=...)"
            )
        super().__init__(optimizer)
        self.batches = batches

    @property
    def factors(self) -> dict[str, float]:
        """The factor of each layer in the last step; 1 for all before the first."""
        groups = self.optimizer.param_groups
        names = group_layer_names(groups)
        norms = {name: group.get(NORMS) or [math.inf] for name, group in zip(names, groups, strict=True)}
        means = {name: sum(history) / len(history) for name, history in norms.items()}
        largest = max((mean for mean in means.values() if mean < math.inf), default=0.0)
        return {name: mean / largest if largest and mean < math.inf else 1.0 for name, mean in means.items()}

    @property
    def lrs(self) -> dict[str, float]:
        """The present learning rate of each layer: the schedule's times the factor of the last step."""
        groups, factors = self.optimizer.param_groups, self.factors
        return {
            name: float(group["lr"]) * factors[name]
            for name, group in zip(group_layer_names(groups), groups, strict=True)
        }

    def _prepare_step(self, stand_in: StandIn) -> None:
        groups = self.optimizer.param_groups
        names = group_layer_names(groups)
        norms = relative_gradient_norms(self.optimizer)
        for name, group in zip(names, groups, strict=True):
            if name in norms:
                group[NORMS] = [*group.get(NORMS, []), norms[name]][-self.batches :]
        factors = self.factors
        stand_in.multiply_lrs([factors[name] for name in names])


@torch.no_grad()
def relative_gradient_norms(optimizer: Optimizer) -> Mapping[str, float]:
    """Return ||g|| / ||theta|| of each layer of an optimizer that has gradients; infinity where all weights are 0.

    Args:
        optimizer: The optimizer. Parameters without a gradient are left out.
    """
    groups = optimizer.param_groups
    tensors = [
        (name, parameter.grad, parameter)
        for name, group in zip(group_layer_names(groups), groups, strict=True)
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if not tensors:
        return {}
    device = tensors[0][1].device
    norms = [torch.stack([_norm(grad), _norm(parameter)]).to(device) for _, grad, parameter in tensors]
    pairs: dict[str, list[Any]] = {}
    for (name, *_), pair in zip(tensors, torch.stack(norms).tolist(), strict=True):  # one transfer for all layers
        pairs.setdefault(name, []).append(pair)
    sums = {name: [math.hypot(*column) for column in zip(*pair, strict=True)] for name, pair in pairs.items()}
    return {name: grad / weight if weight else math.inf for name, (grad, weight) in sums.items()}


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return norm

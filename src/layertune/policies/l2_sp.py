"""L2-SP: a penalty that keeps the weights near the pre-trained ones."""

from collections.abc import Collection
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.errors import OptimizerError
from layertune.layers.layer import LayerMap, parameters_by_layer

__all__ = ["ALPHA", "BETA", "L2SP", "L2SPOptions", "check_l2_sp"]

ALPHA, BETA = 0.01, 0.01  # the only place where they stand: hosts read them from here


class L2SPOptions(TypedDict, total=False):
    """The settings that a host passes on to ``L2SP``."""

    alpha: float
    beta: float


def check_l2_sp(*, alpha: float = ALPHA, beta: float = BETA) -> None:
    """Check the weights of the penalty, for hosts that make it later.

    Raises:
        OptimizerError: A weight is negative or not finite.
    """
    if not all(0 <= weight < float("inf") for weight in (alpha, beta)):
        raise OptimizerError(f"alpha and beta must be finite and >= 0, not {alpha} and {beta}")


class L2SP:
    """Compute the L2-SP penalty (Li, Grandvalet and Davoine, ICML 2018, "Explicit Inductive Bias", sec. 3).

        Omega(w) = alpha / 2 ||w_S - w_S^0||^2 + beta / 2 ||w_N||^2

    w_S are the parameters that come from the pre-trained network, with the values w_S^0 at the time when the object is
    made; w_N are those that are new, by default the head. So the head decays towards 0 and all others towards their
    start. It takes the place of weight decay: give the optimizer ``weight_decay=0``, which is checked. Memory: one copy
    of w_S.

    Make the object after the pre-trained weights are loaded, and before the first step. To resume a run, make it from
    the pre-trained weights again, before the checkpoint is loaded.

    Args:
        model: The network.
        layers: The layers of this network. The parameters of its head are new.
        alpha: The weight of the pull towards the pre-trained weights, >= 0. Default: 0.01. Its best value depends on
            the task.
        beta: The weight of the decay of the new parameters, >= 0. Default: 0.01.
        new: Names of the new parameters. Default: those of the head.

    Raises:
        OptimizerError: A weight is negative or not finite, or a name in ``new`` is not the name of a parameter.
        ModelError: The map belongs to another network.

    Example:
        >>> from layertune import map_layers
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> with torch.no_grad():
        ...     start, head = net[0].weight.fill_(1.0), net[1].weight.fill_(3.0)
        >>> penalty = L2SP(net, map_layers(net, torch.empty(1, 1)), alpha=0.1, beta=0.01)
        >>> with torch.no_grad():
        ...     moved = net[0].weight.fill_(2.0)
        >>> round(penalty().item(), 6)  # 0.1 / 2 * (2 - 1)^2 + 0.01 / 2 * 3^2
        0.095
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerMap,
        *,
        alpha: float = ALPHA,
        beta: float = BETA,
        new: Collection[str] | None = None,
    ) -> None:
        check_l2_sp(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta
        parameters = parameters_by_layer(model, layers)
        named = {
            name: parameter
            for layer in layers
            for name, parameter in zip(layer.parameters, parameters[layer.name], strict=True)
        }
        new = layers.head.parameters if new is None else new
        unknown = sorted(set(new) - set(named))
        if unknown:
            raise OptimizerError(f"new names no parameter of this network: {unknown[:5]}")
        self._new = [parameter for name, parameter in named.items() if name in new]
        self._old = [parameter for name, parameter in named.items() if name not in new]
        self._start = [parameter.detach().clone() for parameter in self._old]

    def __call__(self) -> Tensor:
        """Return Omega(w) as a scalar that can be differentiated, to be added to the loss."""
        self._move_start()
        total = torch.zeros((), device=(self._old or self._new)[0].device)
        for parameter, start in zip(self._old, self._start, strict=True):
            total = total + self.alpha / 2 * (parameter - start).square().sum()
        for parameter in self._new:
            total = total + self.beta / 2 * parameter.square().sum()
        return total

    @torch.no_grad()
    def add_gradient(self, optimizer: Optimizer, *, scale: float = 1.0) -> None:
        """Add the gradient of the penalty to the parameters' gradients, for hosts that own the backward pass.

        Call it between backward and step. The gradient is alpha (w - w^0) and beta w, that of ``loss + penalty()`` but
        for rounding. Parameters without a gradient, and those of other optimizers, get none.

        Args:
            optimizer: The optimizer whose parameters get the gradient.
            scale: The factor of a ``GradScaler`` on all gradients, for an optimizer that unscales in its own step.

        Raises:
            OptimizerError: The optimizer has a weight decay, which would pull the weights towards 0 as well.

        Example:
            >>> from layertune import map_layers
            >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
            >>> penalty, optimizer = L2SP(net, map_layers(net, torch.empty(1, 2))), torch.optim.SGD(net.parameters())
            >>> hook = optimizer.register_step_pre_hook(lambda *_: penalty.add_gradient(optimizer))
        """
        decay = max(float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups)
        if decay:
            raise OptimizerError(
                f"L2-SP takes the place of weight decay, and the optimizer has weight_decay={decay:g}; set that to 0, "
                "and beta to the decay of the head"
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._move_start()
        for parameter, start in zip(self._old, self._start, strict=True):
            if parameter.grad is not None and id(parameter) in held:
                parameter.grad.add_(parameter - start, alpha=self.alpha * scale)
        for parameter in self._new:
            if parameter.grad is not None and id(parameter) in held:
                parameter.grad.add_(parameter, alpha=self.beta * scale)

    def _move_start(self) -> None:
        """Move the pre-trained weights to where the parameters are; a host may move these after the start."""
        self._start = [start.to(parameter.device) for parameter, start in zip(self._old, self._start, strict=True)]

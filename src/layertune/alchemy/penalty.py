"""BNScale: the penalty that makes all gammas large and equal, so that the network uses all its kernels."""

import sys
import warnings
from numbers import Real

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.alchemy.norms import affine_norms, gamma_of, why_no_gammas
from layertune.errors import AlchemyError

__all__ = ["ALPHA", "BETA", "WEIGHT", "GammaPenalty", "check_weights"]

# The thesis' values, and the only place where they stand: hosts read them from here.
ALPHA, BETA, WEIGHT = 0.1, 1.0, 1e-4


class GammaPenalty:
    """Compute the BNScale regularisation, which is added to the loss (Network Alchemy, eqs. 3.1 and 3.2).

        lambda R,  R = -alpha E(Gamma) + beta sqrt(Var(Gamma))

    Gamma are the scales of all norms of the network together. Var is the variance of the whole set (divided by n, not
    by n - 1). Where all gammas are equal, as in a new network, the square root has no derivative, and the gradient of
    its term is taken as 0.

    Args:
        model: The network; it may be wrapped. Only its parameters are kept, not its modules.
        alpha: The weight of the mean. Default: 0.1.
        beta: The weight of the standard deviation, >= 0. Default: 1.
        weight: The factor lambda of the whole penalty, >= 0. Default: 1e-4.
        absolute: Whether |gamma| is read in place of gamma, for networks with negative gammas. The thesis reads gamma.

    Attributes:
        gammas: The parameters that the penalty reads.

    Raises:
        AlchemyError: A setting is not finite, or beta or weight is negative.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> with torch.no_grad():
        ...     net[1].weight.copy_(torch.tensor([0.5, 1.5]))
        Parameter containing: ...
        >>> penalty = GammaPenalty(net, weight=1.0)
        >>> round(penalty().item(), 6)  # -0.1 * 1.0 + 1.0 * 0.5
        0.4
    """

    def __init__(
        self,
        model: nn.Module,
        alpha: float = ALPHA,
        beta: float = BETA,
        weight: float = WEIGHT,
        *,
        absolute: bool = False,
    ) -> None:
        check_weights(alpha=alpha, beta=beta, weight=weight)
        self.alpha, self.beta, self.weight, self.absolute = alpha, beta, weight, absolute
        self.gammas = [gamma_of(norm) for norm in affine_norms(model).values()]
        if not self.gammas:
            warnings.warn(f"GammaPenalty has no effect: {why_no_gammas(model)}", stacklevel=2)

    def __call__(self) -> Tensor:
        """Return lambda R as a scalar that can be differentiated, or a plain 0 if the network has no gamma."""
        if not self.gammas or not self.weight:
            return torch.zeros(())
        std, mean = torch.std_mean(self._all(), correction=0)
        return self.weight * (self.beta * std - self.alpha * mean)

    def add_gradient(self, optimizer: Optimizer | None = None, *, scale: float | Tensor | None = None) -> None:
        """Add the gradient of the penalty to the gammas' gradients, for hosts that own the backward pass.

        Call it between backward and step. The result is that of ``loss + penalty()``, bit for bit. Where several
        batches are accumulated for a step, call it once for all of them. Under DDP every rank adds the same gradient
        after the reduction. Frozen gammas get no gradient. If the loss gave no gamma a gradient, as for a batch that
        was left out, the penalty adds none.

        Args:
            optimizer: The optimizer whose gammas get the gradient. Default: all gammas.
            scale: The factor by which the gradients are multiplied. Default: the factor of the ``GradScaler`` for an
                optimizer that unscales in its own step, else 1.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
            >>> penalty, optimizer = GammaPenalty(net, weight=1.0), torch.optim.SGD(net.parameters(), lr=0.1)
            >>> hook = optimizer.register_step_pre_hook(lambda *_: penalty.add_gradient(optimizer))
            >>> (0 * net(torch.randn(2, 1, 8, 8))).sum().backward()
            >>> optimizer.step()
            >>> net[1].weight.tolist()  # 1 + 0.1 * 0.1 / 2
            [1.00499..., 1.00499...]
        """
        held = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = [g for g in self.gammas if g.requires_grad and (held is None or id(g) in held)]
        if not self.weight or all(gamma.grad is None for gamma in trained):
            return
        if scale is None:
            scale = getattr(optimizer, "grad_scale", None)
        with torch.enable_grad():
            penalty = self()
            # `backward` would call DDP's hooks, which would reduce the gradients a second time.
            grads = torch.autograd.grad(penalty if scale is None else penalty * scale, trained)
        for gamma, grad in zip(trained, grads, strict=True):
            gamma.grad = grad if gamma.grad is None else gamma.grad.add_(grad)

    def _all(self) -> Tensor:
        # In one tensor, mean and standard deviation take one pass, however many norms there are.
        gammas = torch.cat([gamma.flatten() for gamma in self.gammas]).float()
        return gammas.abs() if self.absolute else gammas


def check_weights(**weights: float) -> None:
    """Check the numbers of the penalty.

    Args:
        **weights: ``alpha``, ``beta`` and ``weight``, each by its name.

    Raises:
        AlchemyError: A number is not finite, or ``beta`` or ``weight`` is negative.
    """
    for name, value in weights.items():
        lowest = -sys.float_info.max if name == "alpha" else 0.0
        if not isinstance(value, Real) or not lowest <= value <= sys.float_info.max:
            raise AlchemyError(f"{name} must be finite{'' if name == 'alpha' else ' and >= 0'}, not {value!r}")

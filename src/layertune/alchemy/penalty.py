"""BNScale: the penalty that asks all gammas to be large and alike."""

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
    """The BNScale regularisation, to be added to the loss (Network Alchemy, eqs. 3.1 and 3.2).

        lambda R,  R = -alpha E(Gamma) + beta sqrt(Var(Gamma))

    Gamma are the scales of all norms of the network together, Var is the variance of the whole set (divided by n, not
    by n - 1). Where all gammas are equal, as in a fresh network, the square root has no slope, and the gradient of
    its term is 0.

    Args:
        model: any network, also wrapped; its parameters are kept, its modules are not.
        alpha: weight of the mean.
        beta: weight of the standard deviation.
        weight: lambda.
        absolute: read |gamma| in place of gamma, for networks in which gammas have turned negative. The thesis
            does not.

    Attributes:
        gammas: the parameters that it reads.

    Raises:
        AlchemyError: a setting that is not finite, or a negative beta or weight.

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
        """Lambda R as a scalar on the gammas' device, with its gradient; a plain 0 where there is no gamma."""
        if not self.gammas or not self.weight:
            return torch.zeros(())
        std, mean = torch.std_mean(self._all(), correction=0)
        return self.weight * (self.beta * std - self.alpha * mean)

    def add_gradient(self, optimizer: Optimizer | None = None, *, scale: float | Tensor | None = None) -> None:
        """Add its gradient to that of the loss, where a host owns the backward pass: between backward and step.

        The same as ``loss + penalty()``, bit for bit; where a step has several batches, once for all of them. Under DDP
        every rank adds the same after the reduction. Frozen gammas get none, and where the loss gave no gamma a
        gradient, as for a batch that was left out, none gets one.

        Args:
            optimizer: the gammas that it holds; all by default.
            scale: what the gradients are multiplied by; by default what a ``GradScaler`` tells an optimizer that
                unscales in its own step, or else 1.

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
            # Not `backward`, at which DDP's hooks would reduce once more.
            grads = torch.autograd.grad(penalty if scale is None else penalty * scale, trained)
        for gamma, grad in zip(trained, grads, strict=True):
            gamma.grad = grad if gamma.grad is None else gamma.grad.add_(grad)

    def _all(self) -> Tensor:
        # One tensor, so that mean and deviation take one pass, however many norms there are.
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

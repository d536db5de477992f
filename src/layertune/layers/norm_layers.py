"""Normalisation layers: which modules they are, and which of their parameters are gamma and beta."""

import re

from torch import nn

__all__ = ["beta_name", "gamma_name", "has_parameters", "is_norm"]

TORCH = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# Hosts' own classes that derive from none of torch's: timm's RmsNorm and SimpleNorm, NVFuser's and Apex' norms.
# By kind and not by "norm" alone: in ConvNeXt V2's GlobalResponseNorm a gamma of 0 switches nothing off.
NAMED = re.compile(r"(batch|instance|group|layer|rms|simple|filterresponse)norm", re.IGNORECASE)
GAMMAS = ("weight", "gamma", "scale", "g")
BETAS = ("bias", "beta", "b")


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalises and then scales each channel.

    torch's classes and their subclasses are norms. Another class is a norm if its name says so and if it holds a gamma
    of its own; a wrapper around a norm holds none.

    Example:
        >>> is_norm(nn.BatchNorm2d(4)), is_norm(nn.InstanceNorm2d(4)), is_norm(nn.Linear(4, 4))
        (True, True, False)
    """
    if isinstance(module, TORCH):
        return True
    return NAMED.search(type(module).__name__) is not None and gamma_name(module) is not None


def has_parameters(module: nn.Module) -> bool:
    """Return whether a module is a norm that holds a gamma or a beta."""
    return is_norm(module) and any(parameter is not None for parameter in module._parameters.values())


def gamma_name(norm: nn.Module) -> str | None:
    """Return the name under which a norm holds its scale, or ``None`` for a norm without one.

    Example:
        >>> gamma_name(nn.GroupNorm(1, 4)), gamma_name(nn.InstanceNorm2d(4))
        ('weight', None)
    """
    return _own(norm, GAMMAS)


def beta_name(norm: nn.Module) -> str | None:
    """Return the name under which a norm holds its shift, or ``None`` for a norm without one."""
    return _own(norm, BETAS)


def _own(norm: nn.Module, names: tuple[str, ...]) -> str | None:
    """Return the first of these names under which the module holds one value per channel."""
    for name in names:
        own = norm._parameters.get(name)
        if own is not None and (isinstance(norm, TORCH) or own.numel() == max(own.shape, default=0)):
            return name
    return None

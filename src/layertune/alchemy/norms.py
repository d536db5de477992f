"""Normalisation layers: their gammas, and a training in which they alone are trained."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from layertune.errors import AlchemyError, ModelError
from layertune.layers.names import named_parameters, plain_name, unwrap
from layertune.layers.norm_layers import gamma_name, is_norm
from layertune.restoring import Frozen

__all__ = ["affine_norms", "gamma_of", "gammas", "norm_only", "require_finite", "why_no_gammas"]


def gammas(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the scale (gamma) of each normalisation layer.

    Args:
        model: The network; it may be wrapped by DDP or ``torch.compile``. Batch, instance, group, layer and RMS norms
            count, and the hosts' own classes of these kinds. A gamma that two norms share is listed once.

    Returns:
        The path of each norm that has a gamma, in the model's order, to a tensor with one value per channel.

    Raises:
        ModelError: The network has no norm, or only norms without a gamma.

    Example:
        >>> gammas(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
        {'1': tensor([1., 1.])}
    """
    norms = affine_norms(model)
    if not norms:
        raise ModelError(why_no_gammas(model))
    return {name: gamma_of(norm).detach().clone() for name, norm in norms.items()}


def norm_only(model: nn.Module, *, biases: bool = False, head: Collection[str] = ()) -> Frozen:
    """Freeze all parameters but those of the normalisation layers (thesis sec. 3.2.1; Frankle et al. 2020).

    Frozen weights get no gradient, and a gradient that they still hold is dropped. So an optimizer of all parameters
    moves only the norms, whatever its weight decay. Running statistics keep following the data. What was frozen before
    stays frozen. Freeze before the network is wrapped by DDP, or wrap it with ``find_unused_parameters=True``: DDP
    waits for a gradient of each parameter that required one when it was wrapped.

    Args:
        model: The network; it may be wrapped.
        biases: Whether the biases of convolutions and linear layers train too.
        head: Names of further parameters that train, as ``map_layers(...).head.parameters`` for a new head.

    Returns:
        A handle with ``undo()``, which is also a context manager.

    Raises:
        ModelError: The network has no norm with a gamma, ``head`` names a parameter that it does not have, or all
            parameters that would train are frozen already.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> with norm_only(net):
        ...     [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['1.weight', '1.bias']
    """
    parameters = named_parameters(model)
    norms = affine_norms(model)
    if not norms:
        raise ModelError(why_no_gammas(model))
    if unknown := sorted(set(head) - set(parameters)):
        raise ModelError(f"head names no parameter of {type(unwrap(model)).__name__}: {unknown[:5]}")
    of_norms = {id(parameter) for norm in norms.values() for parameter in norm.parameters(recurse=False)}
    trained = {
        name
        for name, parameter in parameters.items()
        if id(parameter) in of_norms or name in head or (biases and name.rpartition(".")[2] == "bias")
    }
    if not any(parameters[name].requires_grad for name in trained):
        raise ModelError("the parameters of all norms are frozen already, so nothing would train; unfreeze them first")
    frozen = {name: p for name, p in parameters.items() if name not in trained and p.requires_grad}
    for parameter in frozen.values():
        parameter.grad = None
    return Frozen(frozen)


def affine_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norms that have a gamma by their path; of norms that share a gamma, only the first."""
    norms: dict[int, tuple[str, nn.Module]] = {}
    for name, module in unwrap(model).named_modules():
        if is_norm(module) and gamma_name(module) is not None:
            norms.setdefault(id(gamma_of(module)), (plain_name(name), module))
    return dict(norms.values())


def gamma_of(norm: nn.Module) -> nn.Parameter:
    """Return the scale (gamma) of a norm that has one."""
    name = gamma_name(norm)
    parameter = norm._parameters[name] if name is not None else None
    assert parameter is not None, "callers pass only norms with a gamma"
    return parameter


def require_finite(sizes: Mapping[str, Tensor]) -> None:
    """Refuse gammas that hold NaN or infinity.

    Args:
        sizes: The gammas of each norm, by the norm's path, as ``gammas`` returns them.

    Raises:
        AlchemyError: A gamma is not finite; the message names its norm.
    """
    bad = [name for name, values in sizes.items() if not bool(values.isfinite().all())]
    if bad:
        raise AlchemyError(
            f"the gammas of {', '.join(bad[:5])} are not finite, so they say nothing about kernels; the training that "
            "made them diverged: take an earlier checkpoint, or a lower learning rate"
        )


def why_no_gammas(model: nn.Module) -> str:
    """Return why a method that reads gammas cannot be applied to a network."""
    net = unwrap(model)
    norms = [plain_name(name) for name, module in net.named_modules() if is_norm(module)]
    if not norms:
        return (
            f"{type(net).__name__} has no normalisation layer, and this method reads the gammas of such layers; build "
            "the network with norms"
        )
    return (
        f"none of the {len(norms)} norms of {type(net).__name__} has a gamma (the first is {norms[0]!r}); use affine "
        'norms, as in nn.InstanceNorm3d(channels, affine=True) or norm=("instance", {"affine": True})'
    )

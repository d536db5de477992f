"""A new initialisation of redundant kernels, which changes nothing else by a single bit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from layertune.alchemy.kernels import KernelNorm, holds_kernels, kernel_rows
from layertune.alchemy.redundancy import RedundantKernels
from layertune.errors import AlchemyError
from layertune.layers.names import modules_by_name, unwrap
from layertune.layers.norm_layers import beta_name, gamma_name

__all__ = ["reinitialize"]


@torch.no_grad()
def reinitialize(
    model: nn.Module, redundant: RedundantKernels, *, optimizer: Optimizer | None = None, seed: int = 0
) -> None:
    """Give redundant kernels a Kaiming initialisation (Network Alchemy, sec. 3.2.2, Modification; He et al. 2015).

    For each redundant kernel, with gain the gain of the activation behind the norm and fan the number of inputs of a
    kernel times its positions::

        weights ~ N(0, gain^2 / fan),  bias = 0,  gamma = 1,  beta = 0,  running mean = 0,  running variance = 1

    The optimizer's state of these values (momentum, moments) is set to 0. A layer, group or RMS norm normalises the
    other channels of the group together with the new kernel: their values change, and their weights do not.

    Args:
        model: The network in which the kernels were found, or another of the same structure.
        redundant: The result of ``redundant_kernels``.
        optimizer: The optimizer whose state is cleared for these kernels. State of another shape than its parameter,
            as Adafactor's factors, is kept.
        seed: The seed of the new weights. The same seed gives the same weights on any device.

    Raises:
        AlchemyError: The kernels were found in another network.

    Example:
        >>> from layertune.alchemy.redundancy import redundant_kernels
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        >>> with torch.no_grad():
        ...     net[1].weight[1] = 0.01
        >>> before = net[0].weight.clone()
        >>> reinitialize(net, redundant_kernels(net, torch.empty(2, 1, 8, 8), threshold=0.05))
        >>> (net[0].weight == before).flatten(1).all(1), net[1].weight.tolist()
        (tensor([ True, False]), [1.0, 1.0])
    """
    modules = modules_by_name(model)
    kernels = {name: (redundant.pairs[name], channels) for name, channels in redundant.channels.items()}
    _require_same_network(model, modules, [pair for pair, _ in kernels.values()])
    generator = torch.Generator().manual_seed(seed)
    for pair, channels in kernels.values():
        operation, norm = modules[pair.operation], modules[pair.norm]
        _draw(operation, channels, _gain(pair, model), generator)
        _set(operation, "bias", channels, 0.0)
        _set(norm, gamma_name(norm), channels, 1.0)
        _set(norm, beta_name(norm), channels, 0.0)
        _set(norm, "running_mean", channels, 0.0)
        _set(norm, "running_var", channels, 1.0)
        if optimizer is not None:
            _forget(optimizer, operation, norm, channels)


def _draw(operation: nn.Module, channels: Sequence[int], gain: float, generator: torch.Generator) -> None:
    """Draw all kernels of a layer, so that a kernel's new weights do not depend on which others are redundant."""
    rows = kernel_rows(operation)
    fresh = torch.empty(rows.shape[0] * rows.shape[1], *rows.shape[2:])
    # torch takes the gain of a leaky ReLU from its slope: with slope 0 it is sqrt(2).
    nn.init.kaiming_normal_(fresh, a=0.0, mode="fan_in", nonlinearity="leaky_relu", generator=generator)
    fresh *= gain / nn.init.calculate_gain("leaky_relu", 0.0)
    group, row = _places(rows, channels)
    rows[group, row] = fresh[list(channels)].to(rows)


def _gain(pair: KernelNorm, model: nn.Module) -> float:
    parameter = pair.activation.parameter
    if parameter is None:
        return pair.activation.gain()
    path, _, name = parameter.rpartition(".")
    return pair.activation.gain(float(getattr(modules_by_name(model)[path], name).mean()))


def _set(module: nn.Module, name: str | None, channels: Sequence[int], value: float) -> None:
    tensor = getattr(module, name, None) if name is not None else None
    if isinstance(tensor, Tensor):
        tensor.detach().view(-1)[list(channels)] = value


def _forget(optimizer: Optimizer, operation: nn.Module, norm: nn.Module, channels: Sequence[int]) -> None:
    places = [(operation, "weight"), (operation, "bias"), (norm, gamma_name(norm)), (norm, beta_name(norm))]
    for module, name in places:
        parameter = module._parameters.get(name) if name is not None else None
        if parameter is None:
            continue
        for state in optimizer.state.get(parameter, {}).values():
            if isinstance(state, Tensor) and state.shape == parameter.shape and state.ndim:
                rows = kernel_rows(operation, state) if name == "weight" and module is operation else state.view(1, -1)
                group, row = _places(rows, channels)
                rows[group, row] = 0


def _places(rows: Tensor, channels: Sequence[int]) -> tuple[Tensor, Tensor]:
    numbers = torch.tensor(list(channels), device=rows.device)
    return numbers // rows.shape[1], numbers % rows.shape[1]


def _require_same_network(model: nn.Module, modules: dict[str, nn.Module], pairs: Sequence[KernelNorm]) -> None:
    for pair in pairs:
        operation, norm = modules.get(pair.operation), modules.get(pair.norm)
        has_norm = norm is not None and gamma_name(norm) is not None
        has_kernels = operation is not None and holds_kernels(operation)
        if operation is None or not (has_norm and has_kernels) or _count(operation) != pair.kernels:
            raise AlchemyError(
                f"these kernels were found in another network: {type(unwrap(model)).__name__} has no {pair.operation} "
                f"with {pair.kernels} kernels under the norm {pair.norm}; call redundant_kernels on this one"
            )


def _count(operation: nn.Module) -> int:
    return kernel_rows(operation).shape[:2].numel()

"""Pairs of kernels and norms: gamma c of a norm scales output channel c of a convolution or linear layer."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from layertune.alchemy.norms import affine_norms, gamma_of
from layertune.layers.activations import Activation
from layertune.layers.convolutions import Convolution
from layertune.layers.names import modules_by_name, unwrap
from layertune.layers.trace import Trace

__all__ = ["KernelNorm", "KernelNorms", "holds_kernels", "kernel_rows", "pair_kernels"]


@dataclass(frozen=True)
class KernelNorm:
    """A norm that normalises the output of one operation, which nothing else reads.

    Attributes:
        norm: The path of the norm.
        operation: The path of the convolution or linear layer.
        kernels: The number of kernels; gamma c scales kernel c.
        activation: The activation that follows the norm.
    """

    norm: str
    operation: str
    kernels: int
    activation: Activation


@dataclass(frozen=True)
class KernelNorms:
    """All norms of a network that have a gamma.

    Attributes:
        pairs: The norms that scale kernels, by the norm's path, in the model's order.
        unpaired: The other norms, each with the reason why it has no kernels.
    """

    pairs: Mapping[str, KernelNorm]
    unpaired: Mapping[str, str]


def pair_kernels(model: nn.Module, trace: Trace) -> KernelNorms:
    """Find the kernels that each norm scales.

    A norm is paired only if it is certain which kernel each gamma scales: it alone reads the operation's output, its
    gammas lie along the axis of the kernels, and the kernels are a plain weight of one layer. Every other norm is
    unpaired.

    Args:
        model: The network that was traced.
        trace: The trace of this network.

    Example:
        >>> import torch
        >>> from layertune import trace
        >>> net = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> both = pair_kernels(net, trace(net, torch.empty(2, 1, 8, 8)))
        >>> [(pair.norm, pair.operation, pair.activation.operator) for pair in both.pairs.values()]
        [('2', '1', 'relu')]
        >>> list(both.unpaired)
        ['0']
    """
    modules, holders = modules_by_name(model), _holders(model)
    pairs, unpaired = {}, {}
    for name, norm in affine_norms(model).items():
        operation = trace.norms.get(name)
        reason = _no_pair(name, trace) if operation is None else _no_kernels(operation, modules, holders)
        if operation is None or reason is not None:
            unpaired[name] = str(reason)
            continue
        kernels = trace.operations[operation].channels
        if gamma_of(norm).numel() != kernels:
            unpaired[name] = f"it has {gamma_of(norm).numel()} gammas for the {kernels} kernels of {operation}"
            continue
        if name in trace.misaligned:
            unpaired[name] = trace.misaligned[name]
            continue
        pairs[name] = KernelNorm(name, operation, kernels, trace.activations.get(name, Activation("linear")))
    return KernelNorms(pairs, unpaired)


def holds_kernels(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution or linear layer whose weight is a plain parameter of its own."""
    return isinstance(module, Convolution | nn.Linear) and module._parameters.get("weight") is not None


def kernel_rows(module: nn.Module, like: Tensor | None = None) -> Tensor:
    """Return the kernels of a convolution or linear layer as a view of its weight.

    The shape is (groups, kernels of a group, inputs of a group, ...). Kernel c is ``rows[c // n, c % n]``, with n the
    number of kernels in a group. The weight of a transposed convolution has its inputs first, so its axes are swapped.

    Args:
        module: The layer that holds the weight.
        like: A tensor of the weight's shape that is viewed in its place, as an optimizer's momentum.

    Example:
        >>> kernel_rows(nn.Conv2d(4, 6, 3, groups=2)).shape, kernel_rows(nn.ConvTranspose2d(4, 6, 3, groups=2)).shape
        (torch.Size([2, 3, 2, 3, 3]), torch.Size([2, 3, 2, 3, 3]))
    """
    weight = module._parameters["weight"] if like is None else like
    assert weight is not None, "a paired operation holds its weight"
    groups = module.groups if isinstance(module, Convolution) else 1
    rows: Tensor = weight.detach().unflatten(0, (groups, -1))
    return rows.transpose(1, 2) if isinstance(module, Convolution) and module.transposed else rows


def _no_pair(norm: str, trace: Trace) -> str:
    if norm not in trace.norms:
        return "it did not run in the traced forward"
    return "it reads no single operation's output, or is not its only reader (pre-activation, sums, shared layers)"


def _no_kernels(operation: str, modules: Mapping[str, nn.Module], holders: Mapping[int, set[int]]) -> str | None:
    """Return why the kernels of an operation must not be changed, or None if they may be."""
    module = modules.get(operation)
    if module is None or not holds_kernels(module):
        return f"the kernels of {operation} are not the weight of a convolution or linear layer of torch"
    if len(holders[id(module._parameters["weight"])]) > 1:
        return f"{operation} shares its weight with another layer"
    return None


def _holders(model: nn.Module) -> dict[int, set[int]]:
    """Map the identity of each parameter to the identities of the modules that hold it."""
    holders: dict[int, set[int]] = {}
    for module in unwrap(model).modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), set()).add(id(module))
    return holders

"""The names of modules and parameters, without the prefixes of wrappers."""

from collections.abc import Iterable

from torch import nn

__all__ = ["common_path", "modules_by_name", "named_parameters", "plain_name", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of ``torch.compile``, DDP and DataParallel, nested in any way."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """Return the path of a module or parameter without the part that ``torch.compile`` inserts."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by their names without prefixes; a shared parameter is listed once, by its first name."""
    return {plain_name(name): parameter for name, parameter in unwrap(model).named_parameters()}


def common_path(names: Iterable[str]) -> str:
    """Return the longest path that all names begin with, cut at a dot."""
    paths = [name.split(".") for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by their paths without prefixes."""
    return {plain_name(name): module for name, module in unwrap(model).named_modules()}

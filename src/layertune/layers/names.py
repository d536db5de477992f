"""Names of modules and parameters, without what wrappers put before them."""

from collections.abc import Iterable

from torch import nn

__all__ = ["common_path", "modules_by_name", "named_parameters", "plain_name", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, DDP and DataParallel wrappers (any nesting)."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """A module's or parameter's path without the segment that ``torch.compile`` puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names without wrappers' prefixes, each shared one once, under its first name."""
    return {plain_name(name): parameter for name, parameter in unwrap(model).named_parameters()}


def common_path(names: Iterable[str]) -> str:
    """The longest path that all names lie under (or are)."""
    paths = [name.split(".") for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by their path without wrappers' prefixes."""
    return {plain_name(name): module for name, module in unwrap(model).named_modules()}

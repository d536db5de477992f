"""Other packages' optimizers under names of timm's optimizer factory."""

import functools
from typing import Any

from timm.optim._optim_factory import OptimInfo, default_registry, list_optimizers

from layertune.hosts.optimizers import OPTIMIZERS, make_optimizer

__all__ = ["register_optimizers"]


def register_optimizers() -> list[str]:
    """Let timm's optimizer factory make the optimizers of ``layertune.make_optimizer``.

    Afterwards ``create_optimizer_v2(model, "prodigy", lr=1.0, ...)`` works, and so does every other function of timm
    that takes the name of an optimizer. timm cuts names at underscores, so these are written without: ``"prodigy"``,
    ``"prodigysplit"``, ``"ldog"``, ``"schedulefreeadamw"`` and ``"dadaptadam"``. See ``make_optimizer`` for what each
    needs. ``prodigysplit`` takes its layers from the groupers of ``layertune_timm``. The packages are imported when an
    optimizer is made. A name that timm itself has keeps timm's optimizer.

    Returns:
        The names that now make an optimizer of ``make_optimizer``.

    Example:
        >>> import timm
        >>> from timm.optim import create_optimizer_v2
        >>> register_optimizers()
        ['prodigy', 'prodigysplit', 'ldog', 'schedulefreeadamw', 'dadaptadam']
        >>> optimizer = create_optimizer_v2(timm.create_model("resnet18"), "prodigy", lr=1.0)
        >>> type(optimizer).__name__
        'Prodigy'
    """
    registered = []
    for name, known in OPTIMIZERS.items():
        timms_name = name.replace("_", "")
        make: Any = functools.partial(make_optimizer, name)  # timm calls it as it calls a class
        if timms_name in list_optimizers() and not _is_ours(timms_name):
            continue
        if not _is_ours(timms_name):
            has_betas = name != "ldog"
            description = f"{known.package.name}, of the package {known.package.distribution}"
            default_registry.register(
                OptimInfo(name=timms_name, opt_class=make, description=description, has_betas=has_betas)
            )
        registered.append(timms_name)
    return registered


def _is_ours(name: str) -> bool:
    if name not in list_optimizers():
        return False
    made_by = default_registry.get_optimizer_info(name).opt_class
    return isinstance(made_by, functools.partial) and made_by.func is make_optimizer

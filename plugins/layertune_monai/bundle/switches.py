"""Network Alchemy in a bundle: how long it identifies, and which switches belong to which method."""

from math import ceil

from layertune import AlchemyError, Convergence

__all__ = ["OWNERS", "check_switches", "identification"]

PHASED = ("alchemy", "alchemy_metalr")
OWNERS = {
    "patience": PHASED,
    "threshold": PHASED,
    "quantile": PHASED,
    "whole_layers": PHASED,
    "train_head": (*PHASED, "norm_only"),
}
"""Switches, and the methods that read them."""


def identification(epochs: int, *, of: int, patience: int | None = None, val_interval: int = 1) -> Convergence:
    """The identification of a run that validates each k-th epoch by a score.

    Args:
        epochs: that it takes at most.
        of: epochs of the run.
        patience: validations without a better score that end it before.
        val_interval: k.

    Raises:
        AlchemyError: nothing would be left for the maximisation.

    Example:
        >>> identification(20, of=100, val_interval=5)
        Convergence(patience=None, limit=4, min_delta=0.0, mode='max')
    """
    limit = ceil(epochs / val_interval)
    if limit * val_interval >= of:
        raise AlchemyError(
            f"an identification of {epochs} epochs, validated at intervals of {val_interval}, leaves none of the {of} "
            f"epochs to train all layers; give fewer, as --identification {max(1, of // 5)}, or more --epochs"
        )
    return Convergence(patience=patience, limit=limit, mode="max")


def check_switches(method: str, **switches: object) -> None:
    """Refuse a switch that the method does not read.

    Args:
        method: the run's.
        **switches: by name; ``None`` and ``False`` where they are not given.

    Raises:
        AlchemyError: naming the switch and the methods that it belongs to.

    Example:
        >>> check_switches("all", threshold=0.1)
        Traceback (most recent call last):
        layertune.errors.AlchemyError: threshold=0.1 belongs to the method alchemy or alchemy_metalr, not to 'all'; ...
    """
    for name, value in switches.items():
        if value not in (None, False) and method not in OWNERS[name]:
            owners = " or ".join(OWNERS[name])
            raise AlchemyError(f"{name}={value} belongs to the method {owners}, not to {method!r}; leave it out")

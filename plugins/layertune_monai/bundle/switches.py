"""Switches of a bundle: which methods read which switch, and how many epochs Network Alchemy's first phase has."""

from collections.abc import Mapping
from math import ceil
from types import MappingProxyType

from layertune import AlchemyError, Convergence
from layertune_monai.errors import BundleError

__all__ = ["METHODS_OF_SWITCH", "check_switches", "identification_phase"]

LEARNING = ("metalr", "metalr_streaming", "alchemy_metalr")
PHASED = ("alchemy", "alchemy_metalr")

METHODS_OF_SWITCH: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hyper_lr": LEARNING,
        "rule": LEARNING,
        "every": LEARNING,
        "identification": PHASED,
        "patience": PHASED,
        "threshold": PHASED,
        "quantile": PHASED,
        "whole_layers": PHASED,
        "train_head": (*PHASED, "norm_only"),
        "penalty": (*PHASED, "bnscale"),
    }
)
"""Each switch that only some methods read, with the names of these methods."""


def identification_phase(
    epochs: int | None, *, total_epochs: int, patience: int | None = None, val_interval: int = 1
) -> Convergence:
    """Return when the identification of Network Alchemy ends, for a run that validates by a score.

    ``AlchemyHandler`` counts validations, so a number of epochs is divided by the interval between validations.

    Args:
        epochs: The largest number of epochs of the identification. ``None`` stands for a fifth of ``total_epochs``.
        total_epochs: The number of epochs of the whole run.
        patience: The number of validations without a better score after which the identification ends. ``None`` ends
            it by ``epochs`` alone.
        val_interval: The number of epochs between two validations.

    Returns:
        What ``AlchemyHandler(identification=...)`` takes.

    Raises:
        AlchemyError: The identification leaves no epoch for the maximisation.

    Example:
        >>> identification_phase(20, total_epochs=100, val_interval=5)
        Convergence(patience=None, limit=4, min_delta=0.0, mode='max')
    """
    epochs = max(1, total_epochs // 5) if epochs is None else epochs
    limit = ceil(epochs / val_interval)
    if limit * val_interval >= total_epochs:
        raise AlchemyError(
            f"an identification of {epochs} epochs, validated at intervals of {val_interval}, leaves none of the "
            f"{total_epochs} epochs to train all layers; give fewer, as in --identification {max(1, total_epochs // 5)}"
            ", or more --epochs"
        )
    return Convergence(patience=patience, limit=limit, mode="max")


def check_switches(method: str, **switches: object) -> None:
    """Refuse a switch that the method does not read.

    Args:
        method: The name of the method of the run.
        **switches: The values of switches by name. ``None`` and ``False`` mean that a switch was not given.

    Raises:
        BundleError: A switch was given that this method does not read. The message names the methods that read it.

    Example:
        >>> check_switches("all_layers", threshold=0.1)
        Traceback (most recent call last):
        layertune_monai.errors.BundleError: threshold=0.1 belongs to the method alchemy or alchemy_metalr, not to ...
    """
    for name, value in switches.items():
        if value is not None and value is not False and method not in METHODS_OF_SWITCH[name]:
            methods = " or ".join(METHODS_OF_SWITCH[name])
            raise BundleError(f"{name}={value} belongs to the method {methods}, not to {method!r}; leave it out")

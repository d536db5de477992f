"""The example inputs of a LightningModule, which a trace of its layers needs."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from layertune import ModelError
from layertune.hosts.module_layers import positional_inputs

__all__ = ["FOR_LAYERS", "example_inputs"]

FOR_LAYERS = (
    "give the callback layers=, for instance layers=lambda module: layertune.map_layers(module, example_input); an "
    "optimizer built from layertune.param_groups names its layers too"
)
"""What a user without an example input can do about layers."""


def example_inputs(module: pl.LightningModule, otherwise: str) -> tuple[Any, ...]:
    """Return the arguments of the module's forward by position, from its ``example_input_array``.

    Args:
        module: The user's ``LightningModule``, whose ``forward`` is called.
        otherwise: What to do in place of setting ``example_input_array``, for the error.

    Raises:
        ModelError: The module has no ``example_input_array``.
    """
    example = module.example_input_array
    if example is None:
        raise ModelError(
            f"layertune does not know the layers of {type(module).__name__}; set its example_input_array, or "
            f"{otherwise}"
        )
    if isinstance(example, dict):
        return positional_inputs(module, **example)
    return (example,) if isinstance(example, Tensor) else tuple(example)

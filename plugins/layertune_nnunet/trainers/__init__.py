"""Trainers for nnU-Net, and the mixins that they are made of."""

from typing import Any


def __getattr__(name: str) -> Any:
    # In version 0.1 this was the module of the trainers, and copies of its trainer folder still look for them here.
    if not name.startswith("nnUNetTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from layertune_nnunet.trainers import catalogue

    return getattr(catalogue, name)

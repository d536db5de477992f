"""Checkpoints that are whole or not there, and that stock nnU-Net can predict with."""

from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["portable_name", "save_in_one_piece"]


def portable_name(trainer: type) -> str:
    """The trainer that a checkpoint names, by which nnU-Net builds the network for prediction.

    This is the class of nnU-Net that defines the architecture, where one does: prediction asks nothing else of a
    trainer, and then needs no layertune. ``nnUNetv2_train --c`` goes by its command line instead.

    Args:
        trainer: the class that trains.

    Returns:
        The name of nnU-Net's class, or the class's own where the architecture is not nnU-Net's.
    """
    owner = next(base for base in trainer.__mro__ if "build_network_architecture" in vars(base))
    return owner.__name__ if owner.__module__.startswith("nnunetv2.") else trainer.__name__


def save_in_one_piece(save: Callable[[str], None], file: Path, trainer_name: str) -> None:
    """Let nnU-Net save a checkpoint under another name, and rename it when it is whole.

    Args:
        save: writes a checkpoint to a path, or nothing at all (other ranks, checkpoints switched off).
        file: where it belongs.
        trainer_name: what it is to name as its trainer.
    """
    written = file.with_name(f".{file.name}.written")
    try:
        save(str(written))
        if written.exists():
            _rename_trainer(written, trainer_name)
            written.replace(file)
    finally:
        written.unlink(missing_ok=True)


def _rename_trainer(file: Path, trainer_name: str) -> None:
    """Put a trainer's name into a checkpoint."""
    # nnU-Net's own files hold numpy's numbers, and so more than weights.
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    if checkpoint["trainer_name"] != trainer_name:
        checkpoint["trainer_name"] = trainer_name
        torch.save(checkpoint, file)

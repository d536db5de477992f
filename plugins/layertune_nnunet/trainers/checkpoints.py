"""Checkpoints that are written whole or not at all, and that nnU-Net without layertune can predict with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from layertune.files import write_file

__all__ = ["portable_name", "renamed", "save_whole"]


def portable_name(trainer: type) -> str:
    """Return the trainer that a checkpoint has to name, so that nnU-Net builds the right network for prediction.

    Prediction asks the trainer for its network and for nothing else. So the checkpoint names the class of nnU-Net that
    defines the network, and needs no layertune. ``nnUNetv2_train --c`` reads the trainer from its command line.

    Args:
        trainer: The class of the trainer that trains.

    Returns:
        The name of nnU-Net's class, or the name of ``trainer`` itself where the network is not one of nnU-Net's.
    """
    owner = next(base for base in trainer.__mro__ if "build_network_architecture" in vars(base))
    return owner.__name__ if owner.__module__.startswith("nnunetv2.") else trainer.__name__


def save_whole(save: Callable[[str], None], file: Path) -> None:
    """Let nnU-Net save a checkpoint under a temporary name, and rename the file when it is complete.

    Args:
        save: Function that writes a checkpoint to a path. It may write nothing (``--disable_checkpointing``).
        file: Path of the checkpoint.
    """
    write_file(file, lambda temporary: save(str(temporary)), only_writer=True)


@contextmanager
def renamed(trainer: type, name: str) -> Iterator[None]:
    """Give a class another name inside a ``with`` block.

    nnU-Net collects and writes a checkpoint in one method, which takes the trainer's name from its class. Writing the
    file a second time with another name would take more than twice the time, and replacing ``torch.save`` would affect
    everything else that saves at that moment.

    Args:
        trainer: The class to rename.
        name: Its name inside the block.

    Example:
        >>> class Mine: ...
        >>> with renamed(Mine, "Yours"):
        ...     Mine.__name__
        'Yours'
        >>> Mine.__name__
        'Mine'
    """
    own = trainer.__name__
    trainer.__name__ = name
    try:
        yield
    finally:
        trainer.__name__ = own

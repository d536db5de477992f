"""Checkpoints that are whole or not there, and that stock nnU-Net can predict with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["named", "portable_name", "save_in_one_piece"]


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


def save_in_one_piece(save: Callable[[str], None], file: Path) -> None:
    """Let nnU-Net save a checkpoint under another name, and rename it when it is whole.

    Args:
        save: writes a checkpoint to a path, or nothing at all (checkpoints switched off).
        file: where it belongs.
    """
    written = file.with_name(f".{file.name}.written")
    try:
        save(str(written))
        if written.exists():
            written.replace(file)
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def named(trainer: type, name: str) -> Iterator[None]:
    """Give a trainer's class another name for a while.

    nnU-Net makes a checkpoint and writes it in one method, with the name of its class in it. To write the file, read it
    again and write it with another name would take more than twice the time; to replace ``torch.save`` would reach all
    that saves meanwhile.

    Args:
        trainer: the class.
        name: what it is called until the end of the block.

    Example:
        >>> class Mine: ...
        >>> with named(Mine, "Yours"):
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

"""What an nnU-Net user can get wrong beside what the core's errors name."""

from layertune.errors import LayertuneError

__all__ = ["MetaCasesError", "ResultsFolderError", "TrainerNameError"]


class TrainerNameError(LayertuneError, ValueError):
    """A trainer's name has a suffix that says nothing."""


class MetaCasesError(LayertuneError, ValueError):
    """There are no cases for meta batches, or not those that were asked for."""


class ResultsFolderError(LayertuneError, OSError):
    """The folder for results or for those of the stage before cannot be used."""

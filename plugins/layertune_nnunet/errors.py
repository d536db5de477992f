"""What an nnU-Net user can get wrong beside what the core's errors name."""

from layertune.errors import LayertuneError

__all__ = ["ExportError", "MetaCasesError", "PathsError", "PlansError", "ResultsFolderError", "TrainerNameError"]


class TrainerNameError(LayertuneError, ValueError):
    """A trainer's name has a suffix that says nothing, or there is no such trainer."""


class MetaCasesError(LayertuneError, ValueError):
    """There are no cases for meta batches, or not those that were asked for."""


class ResultsFolderError(LayertuneError, OSError):
    """The folder for results or for those of the stage before cannot be used."""


class PlansError(LayertuneError, ValueError):
    """A plan of nnU-Net is not there, cannot be read, or has not what was asked for."""


class ExportError(LayertuneError, ValueError):
    """A trained model cannot be given to users without layertune."""


class PathsError(LayertuneError, RuntimeError):
    """A folder of nnU-Net's is not set, or its program is not there."""

"""Errors that only nnU-Net's users can meet; the core's errors are in ``layertune.errors``."""

from layertune.errors import LayertuneError

__all__ = ["ExportError", "MetaCasesError", "PathsError", "PlansError", "ResultsFolderError", "TrainerNameError"]


class TrainerNameError(LayertuneError, ValueError):
    """No trainer has the given name, or a suffix of the name cannot be read."""


class MetaCasesError(LayertuneError, ValueError):
    """The cases for meta batches cannot be chosen as the trainer asks."""


class ResultsFolderError(LayertuneError, OSError):
    """The results folder cannot be written, or lacks the predictions of a cascade's previous stage."""


class PlansError(LayertuneError, ValueError):
    """A plans file is missing, cannot be read, or lacks the requested configuration."""


class ExportError(LayertuneError, ValueError):
    """A trained model cannot be made portable for users without layertune."""


class PathsError(LayertuneError, RuntimeError):
    """An environment variable of nnU-Net is not set, or its program cannot be found."""

"""What can go wrong around a bundle."""

from layertune.errors import LayertuneError

__all__ = ["BundleError", "LabelError", "SplitError", "TaskError"]


class BundleError(LayertuneError, ValueError):
    """A folder cannot take a bundle, is none, or a path in its configuration leaves it."""


class TaskError(LayertuneError, FileNotFoundError):
    """The data of a task is not there, or not as the Decathlon lays it out."""


class SplitError(LayertuneError, ValueError):
    """Numbers of cases that no split has."""


class LabelError(LayertuneError, ValueError):
    """A label map holds values that the task does not name."""

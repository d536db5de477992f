"""Errors of bundles and of their data."""

from layertune.errors import LayertuneError

__all__ = ["BundleError", "LabelError", "SplitError", "TaskError"]


class BundleError(LayertuneError, ValueError):
    """Raised for a folder that cannot be used as a bundle, and for a configuration or switch that cannot run."""


class TaskError(LayertuneError, FileNotFoundError):
    """Raised if the data of a task is missing, or is not in the layout of the Medical Segmentation Decathlon."""


class SplitError(LayertuneError, ValueError):
    """Raised for a number or a fraction of cases by which no data set can be split."""


class LabelError(LayertuneError, ValueError):
    """Raised if a label map holds a value that is no class of the task."""

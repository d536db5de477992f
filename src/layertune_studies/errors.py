"""Errors of the studies, each with what to do about it."""

from layertune.errors import LayertuneError

__all__ = ["DataError", "DiskError", "FolderError", "StudyError"]


class DataError(LayertuneError, FileNotFoundError):
    """Images that were asked for are not there."""


class FolderError(LayertuneError, FileExistsError):
    """The folder cannot be used, or holds the work of a run with other options, or other things."""


class StudyError(LayertuneError, ValueError):
    """A study cannot be run as it is written."""


class DiskError(FolderError):
    """The disk is full, or refuses to be written to."""

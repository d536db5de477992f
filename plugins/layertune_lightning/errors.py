"""The error of this plug-in, beside those of the core."""

from layertune.errors import LayertuneError

__all__ = ["SettingError"]


class SettingError(LayertuneError, ValueError):
    """The environment variable ``LAYERTUNE_LIGHTNING`` cannot be read."""

"""What a Lightning user can get wrong beside what the core's errors name."""

from layertune.errors import LayertuneError

__all__ = ["SettingError"]


class SettingError(LayertuneError, ValueError):
    """The environment variable ``LAYERTUNE_LIGHTNING`` cannot be read."""

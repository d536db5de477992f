"""What a Lightning user can get wrong beside what the core's errors name."""

from layertune.errors import LayertuneError

__all__ = ["MetaBatchError", "SettingError"]


class MetaBatchError(LayertuneError, ValueError):
    """There is no meta batch, or the module's step cannot use it."""


class SettingError(LayertuneError, ValueError):
    """The environment variable ``LAYERTUNE_LIGHTNING`` cannot be read."""

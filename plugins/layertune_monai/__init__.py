"""layertune for MONAI: handlers for its engines, and a bundle."""

from layertune.plugin import Plugin

__all__ = ["PLUGIN"]

PLUGIN = Plugin(name="MONAI", distribution="monai", lowest="1.6", module="monai", extra="monai")

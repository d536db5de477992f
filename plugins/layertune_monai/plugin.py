"""The description of the plug-in for MONAI; imports without MONAI."""

from layertune.hosts.plugin import Plugin

__all__ = ["PLUGIN"]

PLUGIN = Plugin(name="MONAI", distribution="monai", lowest="1.6", module="monai", extra="monai")

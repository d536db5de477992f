"""The description of the plug-in for timm; imports without timm."""

from layertune.hosts.plugin import Plugin

__all__ = ["PLUGIN"]

PLUGIN = Plugin(name="timm", distribution="timm", lowest="1.0.22", module="timm", extra="timm")

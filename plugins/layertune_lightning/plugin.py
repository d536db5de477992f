"""The description of the plug-in for Lightning; imports without Lightning."""

from layertune.hosts.plugin import Plugin

__all__ = ["PLUGIN"]

PLUGIN = Plugin(
    name="Lightning", distribution="pytorch-lightning", lowest="2.6", module="pytorch_lightning", extra="lightning"
)

"""The description of the plug-in for nnU-Net; imports without nnU-Net."""

from layertune.hosts.plugin import Plugin

__all__ = ["PLUGIN"]

PLUGIN = Plugin(name="nnU-Net", distribution="nnunetv2", lowest="2.8", module="nnunetv2", extra="nnunet")

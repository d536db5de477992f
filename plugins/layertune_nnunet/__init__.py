"""layertune for nnU-Net: trainers picked with ``-tr``."""

from layertune.plugin import Plugin

__all__ = ["PLUGIN"]

PLUGIN = Plugin(name="nnU-Net", distribution="nnunetv2", lowest="2.8", module="nnunetv2", extra="nnunet")

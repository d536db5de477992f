"""AutoLR: learning rates that are adjusted by trial and error until weight variation rises with depth."""

from layertune.autolr.autolr import AutoLR, LRTrial
from layertune.autolr.pruning import prune_blocks, removable_blocks

__all__ = ["AutoLR", "LRTrial", "prune_blocks", "removable_blocks"]

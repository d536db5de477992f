"""Layer-wise fine-tuning for people who adapt pre-trained networks to medical images."""

from layertune.autolr import AutoLR
from layertune.block_pruning import prune_blocks, removable_blocks
from layertune.errors import (
    LayertuneError,
    MetaBatchError,
    MissingPackageError,
    ModelError,
    OptimizerError,
    PolicyError,
    ProfileError,
    WeightsError,
)
from layertune.groups import freeze, param_groups
from layertune.layers import Layer, LayerMap, map_layers
from layertune.meta import meta_pass
from layertune.metalr import MetaLR
from layertune.norms import frozen_statistics
from layertune.plugin import Plugin, plugins
from layertune.policies import (
    AllLayers,
    BiDirectional,
    LastLayer,
    LayerDecay,
    LayerWise,
    UNetScheme,
    bidirectional_grid,
)
from layertune.profile import LRProfile
from layertune.trace import Trace, trace
from layertune.weights import Loaded, load_weights, read_weights

__all__ = [
    "AllLayers",
    "AutoLR",
    "BiDirectional",
    "LRProfile",
    "LastLayer",
    "Layer",
    "LayerDecay",
    "LayerMap",
    "LayerWise",
    "LayertuneError",
    "Loaded",
    "MetaBatchError",
    "MetaLR",
    "MissingPackageError",
    "ModelError",
    "OptimizerError",
    "Plugin",
    "PolicyError",
    "ProfileError",
    "Trace",
    "UNetScheme",
    "WeightsError",
    "bidirectional_grid",
    "freeze",
    "frozen_statistics",
    "load_weights",
    "map_layers",
    "meta_pass",
    "param_groups",
    "plugins",
    "prune_blocks",
    "read_weights",
    "removable_blocks",
    "trace",
]
__version__ = "0.1.0"

"""Layer-wise fine-tuning for people who adapt pre-trained networks to medical images."""

from layertune.errors import (
    LayertuneError,
    MissingPackageError,
    ModelError,
    OptimizerError,
    PolicyError,
    ProfileError,
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

__all__ = [
    "AllLayers",
    "BiDirectional",
    "LRProfile",
    "LastLayer",
    "Layer",
    "LayerDecay",
    "LayerMap",
    "LayerWise",
    "LayertuneError",
    "MetaLR",
    "MissingPackageError",
    "ModelError",
    "OptimizerError",
    "Plugin",
    "PolicyError",
    "ProfileError",
    "Trace",
    "UNetScheme",
    "bidirectional_grid",
    "freeze",
    "frozen_statistics",
    "map_layers",
    "meta_pass",
    "param_groups",
    "plugins",
    "trace",
]
__version__ = "0.1.0"

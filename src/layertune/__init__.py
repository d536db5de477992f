"""Layer-wise fine-tuning for people who adapt pre-trained networks to medical images."""

from layertune.alchemy import Alchemy
from layertune.autolr import AutoLR
from layertune.block_pruning import prune_blocks, removable_blocks
from layertune.clipping import clip_test
from layertune.convergence import Convergence
from layertune.errors import (
    AlchemyError,
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
from layertune.norms import frozen_statistics, gammas, norm_only
from layertune.penalty import GammaPenalty
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
from layertune.ranking import rank_checkpoints, rank_correlation
from layertune.redundancy import redundant_kernels
from layertune.reinitialize import reinitialize
from layertune.trace import Trace, trace
from layertune.weights import Loaded, load_weights, read_weights

__all__ = [
    "Alchemy",
    "AlchemyError",
    "AllLayers",
    "AutoLR",
    "BiDirectional",
    "Convergence",
    "GammaPenalty",
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
    "clip_test",
    "freeze",
    "frozen_statistics",
    "gammas",
    "load_weights",
    "map_layers",
    "meta_pass",
    "norm_only",
    "param_groups",
    "plugins",
    "prune_blocks",
    "rank_checkpoints",
    "rank_correlation",
    "read_weights",
    "redundant_kernels",
    "reinitialize",
    "removable_blocks",
    "trace",
]
__version__ = "0.1.0"

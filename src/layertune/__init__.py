"""Layer-wise fine-tuning for people who adapt pre-trained networks to medical images."""

from layertune.alchemy.clip_test import clip_test
from layertune.alchemy.convergence import Convergence
from layertune.alchemy.norms import frozen_statistics, gammas, norm_only
from layertune.alchemy.penalty import GammaPenalty
from layertune.alchemy.phases import Alchemy
from layertune.alchemy.ranking import rank_checkpoints, rank_correlation
from layertune.alchemy.redundancy import redundant_kernels
from layertune.alchemy.reinitialize import reinitialize
from layertune.autolr.autolr import AutoLR
from layertune.autolr.pruning import prune_blocks, removable_blocks
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
from layertune.hosts.plugin import Plugin, plugins
from layertune.layers.layer_map import Layer, LayerMap, map_layers
from layertune.layers.trace import Trace, trace
from layertune.metalr.meta_pass import meta_pass
from layertune.metalr.metalr import MetaLR
from layertune.old_paths import redirect
from layertune.policies.param_groups import freeze, param_groups
from layertune.policies.policies import (
    AllLayers,
    BiDirectional,
    LastLayer,
    LayerDecay,
    LayerWise,
    UNetScheme,
    bidirectional_grid,
)
from layertune.rates.profile import LRProfile
from layertune.weights.loading import Loaded, load_weights, read_weights

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

# Scripts and bundles that were written for version 0.1 name these modules.
redirect(
    {
        "layertune.activations": "layertune.layers.activations",
        "layertune.clipping": "layertune.alchemy.clip_test",
        "layertune.convergence": "layertune.alchemy.convergence",
        "layertune.groups": "layertune.policies",
        "layertune.kernels": "layertune.alchemy.kernels",
        "layertune.plugin": "layertune.hosts.plugin",
        "layertune.profile": "layertune.rates.profile",
        "layertune.ranking": "layertune.alchemy.ranking",
        "layertune.redundancy": "layertune.alchemy.redundancy",
        "layertune.replay": "layertune.rates.replay",
        "layertune.schemes": "layertune.policies.by_name",
    }
)

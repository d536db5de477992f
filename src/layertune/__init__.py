"""Layer-wise fine-tuning for people who adapt pre-trained networks to medical images."""

from layertune.alchemy.clip_test import ClipPoint, ClipTest, clip_test
from layertune.alchemy.convergence import Convergence, Progress
from layertune.alchemy.kernels import KernelNorm
from layertune.alchemy.norms import gammas, norm_only
from layertune.alchemy.penalty import GammaPenalty
from layertune.alchemy.phases import Alchemy
from layertune.alchemy.rank_correlation import rank_correlation
from layertune.alchemy.ranking import Candidate, Ranking, rank_checkpoints
from layertune.alchemy.redundancy import RedundantKernels, redundant_kernels
from layertune.alchemy.reinitialize import reinitialize
from layertune.autolr.autolr import AutoLR, LRTrial
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
    SaveError,
    WeightsError,
)
from layertune.hosts.evaluation_weights import evaluation_weights
from layertune.hosts.optimizers import make_optimizer
from layertune.hosts.plugin import Plugin, PluginStatus, plugins
from layertune.layers.activations import Activation
from layertune.layers.layer import Layer, LayerMap
from layertune.layers.layer_map import map_layers
from layertune.layers.trace import Trace, trace
from layertune.metalr.meta_pass import frozen_statistics, meta_pass
from layertune.metalr.metalr import MetaLR
from layertune.metalr.settings import MetaLRSettings
from layertune.old_paths import redirect
from layertune.policies.choosing import Choice, Score, choose
from layertune.policies.freezing import Frozen, freeze
from layertune.policies.l2_sp import L2SP
from layertune.policies.param_groups import param_groups
from layertune.policies.phases import LPFT, GradualUnfreezing, PhasedFreezing, Phases
from layertune.policies.policies import (
    AllLayers,
    BiDirectional,
    InverseSize,
    LastLayer,
    LayerDecay,
    LayerWise,
    Policy,
    UNetScheme,
    bidirectional_grid,
)
from layertune.rates.auto_rgn import AutoRGN
from layertune.rates.profile import LRProfile, ProfileSummary
from layertune.rates.replay import Replay
from layertune.weights.loading import Loaded, load_weights, read_weights

__all__ = [
    "L2SP",
    "LPFT",
    "Activation",
    "Alchemy",
    "AlchemyError",
    "AllLayers",
    "AutoLR",
    "AutoRGN",
    "BiDirectional",
    "Candidate",
    "Choice",
    "ClipPoint",
    "ClipTest",
    "Convergence",
    "Frozen",
    "GammaPenalty",
    "GradualUnfreezing",
    "InverseSize",
    "KernelNorm",
    "LRProfile",
    "LRTrial",
    "LastLayer",
    "Layer",
    "LayerDecay",
    "LayerMap",
    "LayerWise",
    "LayertuneError",
    "Loaded",
    "MetaBatchError",
    "MetaLR",
    "MetaLRSettings",
    "MissingPackageError",
    "ModelError",
    "OptimizerError",
    "PhasedFreezing",
    "Phases",
    "Plugin",
    "PluginStatus",
    "Policy",
    "PolicyError",
    "ProfileError",
    "ProfileSummary",
    "Progress",
    "Ranking",
    "RedundantKernels",
    "Replay",
    "SaveError",
    "Score",
    "Trace",
    "UNetScheme",
    "WeightsError",
    "bidirectional_grid",
    "choose",
    "clip_test",
    "evaluation_weights",
    "freeze",
    "frozen_statistics",
    "gammas",
    "load_weights",
    "make_optimizer",
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
__version__ = "0.2.0"

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

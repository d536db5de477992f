"""Policies: which layers are trained, and at which scale of the learning rate."""

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

__all__ = [
    "L2SP",
    "LPFT",
    "AllLayers",
    "BiDirectional",
    "Choice",
    "Frozen",
    "GradualUnfreezing",
    "InverseSize",
    "LastLayer",
    "LayerDecay",
    "LayerWise",
    "PhasedFreezing",
    "Phases",
    "Policy",
    "Score",
    "UNetScheme",
    "bidirectional_grid",
    "choose",
    "freeze",
    "param_groups",
]

"""Policies: which layers are trained, and at which scale of the learning rate."""

from layertune.policies.freezing import Frozen, freeze
from layertune.policies.param_groups import param_groups
from layertune.policies.policies import (
    AllLayers,
    BiDirectional,
    LastLayer,
    LayerDecay,
    LayerWise,
    Policy,
    UNetScheme,
    bidirectional_grid,
)

__all__ = [
    "AllLayers",
    "BiDirectional",
    "Frozen",
    "LastLayer",
    "LayerDecay",
    "LayerWise",
    "Policy",
    "UNetScheme",
    "bidirectional_grid",
    "freeze",
    "param_groups",
]

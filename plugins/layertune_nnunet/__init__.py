"""layertune for nnU-Net: trainers picked with ``-tr``, and mixins for trainers of your own."""

import importlib
from typing import TYPE_CHECKING, Any

from layertune.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_nnunet.alchemy_trainer import AlchemyMixin
    from layertune_nnunet.fixed_trainers import BiDirectionalMixin, FixedLayersMixin, LastLayerMixin, LayerWiseMixin
    from layertune_nnunet.learned_rates import MetaLRStreamingMixin
    from layertune_nnunet.metalr_trainer import MetaLRMixin
    from layertune_nnunet.norm_trainers import BNScaleMixin, NormOnlyMixin
    from layertune_nnunet.trainers import (
        nnUNetTrainerAlchemy,
        nnUNetTrainerAlchemyMetaLR,
        nnUNetTrainerAlchemyMetaLRStreaming,
        nnUNetTrainerBiDirectional,
        nnUNetTrainerBNScale,
        nnUNetTrainerLastLayer,
        nnUNetTrainerLayerWise,
        nnUNetTrainerMetaLR,
        nnUNetTrainerMetaLRStreaming,
        nnUNetTrainerNormOnly,
    )

__all__ = [
    "PLUGIN",
    "AlchemyMixin",
    "BNScaleMixin",
    "BiDirectionalMixin",
    "FixedLayersMixin",
    "LastLayerMixin",
    "LayerWiseMixin",
    "MetaLRMixin",
    "MetaLRStreamingMixin",
    "NormOnlyMixin",
    "nnUNetTrainerAlchemy",
    "nnUNetTrainerAlchemyMetaLR",
    "nnUNetTrainerAlchemyMetaLRStreaming",
    "nnUNetTrainerBNScale",
    "nnUNetTrainerBiDirectional",
    "nnUNetTrainerLastLayer",
    "nnUNetTrainerLayerWise",
    "nnUNetTrainerMetaLR",
    "nnUNetTrainerMetaLRStreaming",
    "nnUNetTrainerNormOnly",
]

PLUGIN = Plugin(name="nnU-Net", distribution="nnunetv2", lowest="2.8", module="nnunetv2", extra="nnunet")

_MODULES = {
    "AlchemyMixin": "alchemy_trainer",
    "BNScaleMixin": "norm_trainers",
    "BiDirectionalMixin": "fixed_trainers",
    "FixedLayersMixin": "fixed_trainers",
    "LastLayerMixin": "fixed_trainers",
    "LayerWiseMixin": "fixed_trainers",
    "MetaLRMixin": "metalr_trainer",
    "MetaLRStreamingMixin": "learned_rates",
    "NormOnlyMixin": "norm_trainers",
}


def __getattr__(name: str) -> Any:
    # Trainers with values in their names are in no list.
    module = "trainers" if name.startswith("nnUNetTrainer") else _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_host(PLUGIN)
    return getattr(importlib.import_module(f"layertune_nnunet.{module}"), name)

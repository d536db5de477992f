"""layertune for nnU-Net: trainers picked with ``-tr``, and mixins for trainers of your own."""

import importlib
from typing import TYPE_CHECKING, Any

from layertune.hosts.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_nnunet.trainers.alchemy import AlchemyMixin
    from layertune_nnunet.trainers.catalogue import (
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
    from layertune_nnunet.trainers.frozen import BiDirectionalMixin, FixedLayersMixin, LastLayerMixin, LayerWiseMixin
    from layertune_nnunet.trainers.learned_rates import MetaLRStreamingMixin
    from layertune_nnunet.trainers.metalr import MetaLRMixin
    from layertune_nnunet.trainers.norms import BNScaleMixin, NormOnlyMixin

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
    "AlchemyMixin": "trainers.alchemy",
    "BNScaleMixin": "trainers.norms",
    "BiDirectionalMixin": "trainers.frozen",
    "FixedLayersMixin": "trainers.frozen",
    "LastLayerMixin": "trainers.frozen",
    "LayerWiseMixin": "trainers.frozen",
    "MetaLRMixin": "trainers.metalr",
    "MetaLRStreamingMixin": "trainers.learned_rates",
    "NormOnlyMixin": "trainers.norms",
}


def __getattr__(name: str) -> Any:
    # Trainers with values in their names are in no list.
    module = "trainers.catalogue" if name.startswith("nnUNetTrainer") else _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_host(PLUGIN)
    return getattr(importlib.import_module(f"layertune_nnunet.{module}"), name)

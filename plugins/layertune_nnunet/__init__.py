"""layertune for nnU-Net: trainers picked with ``-tr``, and mixins for trainers of your own."""

from typing import TYPE_CHECKING

from layertune.hosts.plugin import lazy_names
from layertune_nnunet.plugin import PLUGIN

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

_MODULES = {
    "AlchemyMixin": "layertune_nnunet.trainers.alchemy",
    "BNScaleMixin": "layertune_nnunet.trainers.norms",
    "BiDirectionalMixin": "layertune_nnunet.trainers.frozen",
    "FixedLayersMixin": "layertune_nnunet.trainers.frozen",
    "LastLayerMixin": "layertune_nnunet.trainers.frozen",
    "LayerWiseMixin": "layertune_nnunet.trainers.frozen",
    "MetaLRMixin": "layertune_nnunet.trainers.metalr",
    "MetaLRStreamingMixin": "layertune_nnunet.trainers.learned_rates",
    "NormOnlyMixin": "layertune_nnunet.trainers.norms",
}


def _module_of(name: str) -> str | None:
    # nnU-Net's -tr option also names trainers with values in their names, which are in no list.
    return "layertune_nnunet.trainers.catalogue" if name.startswith("nnUNetTrainer") else _MODULES.get(name)


__getattr__ = lazy_names(__name__, PLUGIN, _module_of)

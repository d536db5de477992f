"""layertune for nnU-Net: trainers picked with ``-tr``, and mixins for trainers of your own."""

from typing import TYPE_CHECKING, Any

from layertune.plugin import Plugin, import_host

if TYPE_CHECKING:
    from layertune_nnunet.trainers import (
        AlchemyMixin,
        BiDirectionalMixin,
        BNScaleMixin,
        FixedLayersMixin,
        LastLayerMixin,
        LayerWiseMixin,
        MetaLRMixin,
        MetaLRStreamingMixin,
        NormOnlyMixin,
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


def __getattr__(name: str) -> Any:
    if name not in __all__ and not name.startswith("nnUNetTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_host(PLUGIN)
    from layertune_nnunet import trainers

    return getattr(trainers, name)

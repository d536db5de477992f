"""The trainers, by the names that ``nnUNetv2_train -tr`` takes; those with values in their names are made when asked.

A name such as ``nnUNetTrainerMetaLR_hlr0p05_20epochs`` is a class of this module like any other: the same at each
look-up, and found again when it is unpickled.
"""

from functools import cache
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from layertune_nnunet.trainers.alchemy import AlchemyMixin
from layertune_nnunet.trainers.frozen import BiDirectionalMixin, LastLayerMixin, LayerWiseMixin
from layertune_nnunet.trainers.learned_rates import MetaLRStreamingMixin
from layertune_nnunet.trainers.metalr import MetaLRMixin
from layertune_nnunet.trainers.names import read_suffixes, suffixes_of
from layertune_nnunet.trainers.norms import BNScaleMixin, NormOnlyMixin

__all__ = [
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


class nnUNetTrainerNormOnly(NormOnlyMixin, nnUNetTrainer):
    """nnU-Net that trains the norms' own parameters alone."""


class nnUNetTrainerBNScale(BNScaleMixin, nnUNetTrainer):
    """nnU-Net with a penalty that asks gammas to be large and alike."""


class nnUNetTrainerAlchemy(AlchemyMixin, nnUNetTrainer):
    """nnU-Net that finds redundant kernels, lets them start afresh, and then trains all."""


# MetaLR comes first, so that its meta batches have nnU-Net's own loss, without the penalty of a training step.
class nnUNetTrainerAlchemyMetaLR(MetaLRMixin, AlchemyMixin, nnUNetTrainer):
    """nnU-Net with Network Alchemy, and one learned learning rate a layer from its maximisation on."""


class nnUNetTrainerAlchemyMetaLRStreaming(MetaLRStreamingMixin, AlchemyMixin, nnUNetTrainer):
    """nnU-Net with Network Alchemy, and learned rates from the training batches themselves in its maximisation."""


class nnUNetTrainerMetaLR(MetaLRMixin, nnUNetTrainer):
    """nnU-Net with one learned learning rate a layer, from meta batches."""


class nnUNetTrainerMetaLRStreaming(MetaLRStreamingMixin, nnUNetTrainer):
    """nnU-Net with one learned learning rate a layer, from the training batches themselves."""


class nnUNetTrainerBiDirectional(BiDirectionalMixin, nnUNetTrainer):
    """nnU-Net that freezes depths m to n."""


class nnUNetTrainerLayerWise(LayerWiseMixin, nnUNetTrainer):
    """nnU-Net that freezes all depths before one."""


class nnUNetTrainerLastLayer(LastLayerMixin, nnUNetTrainer):
    """nnU-Net that tunes its segmentation layers alone."""


def __getattr__(name: str) -> Any:
    trainer, underscore, _ = name.partition("_")
    if not underscore or trainer not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _with_values(globals()[trainer], name)


@cache
def _with_values(trainer: type, name: str) -> type:
    """A trainer with the values that its name holds."""
    values = read_suffixes(name, suffixes_of(trainer))
    return type(name, (trainer,), {**values, "__module__": __name__, "__doc__": f"{trainer.__doc__} Here: {values}."})

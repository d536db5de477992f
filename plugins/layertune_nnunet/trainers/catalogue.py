"""The trainers by the names that ``nnUNetv2_train -tr`` takes.

A class with settings in its name, as ``nnUNetTrainerMetaLR_hlr0p05_20epochs``, is made when it is first asked
for. It is the same class each time and can be pickled, like the classes that are defined here.
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
    """Train the parameters of the norms only."""


class nnUNetTrainerBNScale(BNScaleMixin, nnUNetTrainer):
    """Train all layers with a penalty that makes the norms' gammas large and equal."""


class nnUNetTrainerAlchemy(AlchemyMixin, nnUNetTrainer):
    """Identify redundant kernels, initialize them anew, then train all layers."""


# MetaLR comes first, so that its meta batches use nnU-Net's own loss, without the penalty of a training step.
class nnUNetTrainerAlchemyMetaLR(MetaLRMixin, AlchemyMixin, nnUNetTrainer):
    """Run Network Alchemy, and learn one rate per layer from meta batches in its last phase."""


class nnUNetTrainerAlchemyMetaLRStreaming(MetaLRStreamingMixin, AlchemyMixin, nnUNetTrainer):
    """Run Network Alchemy, and learn one rate per layer from the training batches in its last phase."""


class nnUNetTrainerMetaLR(MetaLRMixin, nnUNetTrainer):
    """Train all layers, and learn one rate per layer from meta batches."""


class nnUNetTrainerMetaLRStreaming(MetaLRStreamingMixin, nnUNetTrainer):
    """Train all layers, and learn one rate per layer from the training batches."""


class nnUNetTrainerBiDirectional(BiDirectionalMixin, nnUNetTrainer):
    """Freeze the layers of depths m to n, and train the others."""


class nnUNetTrainerLayerWise(LayerWiseMixin, nnUNetTrainer):
    """Freeze the layers before one depth, and train the others."""


class nnUNetTrainerLastLayer(LastLayerMixin, nnUNetTrainer):
    """Train the segmentation layers only."""


def __getattr__(name: str) -> Any:
    trainer, underscore, _ = name.partition("_")
    if not underscore or trainer not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _with_settings(globals()[trainer], name)


@cache
def _with_settings(trainer: type, name: str) -> type:
    """Make the class of a trainer with the settings in its name."""
    values = read_suffixes(name, suffixes_of(trainer))
    return type(
        name, (trainer,), {**values, "__module__": __name__, "__doc__": f"{trainer.__doc__} Settings: {values}."}
    )

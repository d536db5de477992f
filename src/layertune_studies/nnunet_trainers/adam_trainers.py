"""layertune's mixins before nnU-Net's trainer with AdamW, in a folder that ``nnUNet_extTrainer`` names."""

from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam1en3

from layertune_nnunet import BiDirectionalMixin, MetaLRMixin, MetaLRStreamingMixin

__all__ = [
    "nnUNetTrainerAdam1en3BiDirectional",
    "nnUNetTrainerAdam1en3MetaLR",
    "nnUNetTrainerAdam1en3MetaLRStreaming",
]


class nnUNetTrainerAdam1en3MetaLR(MetaLRMixin, nnUNetTrainerAdam1en3):
    """Learned rates on AdamW, by the rule that knows no scale."""

    rule = "cosine"
    hyper_lr = 0.05


class nnUNetTrainerAdam1en3MetaLRStreaming(MetaLRStreamingMixin, nnUNetTrainerAdam1en3):
    """The same, from the training batches."""

    rule = "cosine"
    hyper_lr = 0.05


class nnUNetTrainerAdam1en3BiDirectional(BiDirectionalMixin, nnUNetTrainerAdam1en3):
    """AdamW, with the middle of the network frozen."""

    m = 3
    n = 6

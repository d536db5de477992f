"""nnU-Net's trainer with AdamW at other rates, and with layertune's mixins; ``nnUNet_extTrainer`` names this folder."""

from typing import Any

from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam1en3

from layertune_nnunet import BiDirectionalMixin, MetaLRMixin, MetaLRStreamingMixin

__all__ = [
    "nnUNetTrainerAdam1en2",
    "nnUNetTrainerAdam1en3BiDirectional",
    "nnUNetTrainerAdam1en3MetaLR",
    "nnUNetTrainerAdam1en3MetaLRStreaming",
    "nnUNetTrainerAdam3en3",
]


class nnUNetTrainerAdam3en3(nnUNetTrainerAdam1en3):
    """AdamW at three times the rate."""

    def configure_optimizers(self) -> Any:
        """With the rate that ``__init__``, of a fixed signature, does not take."""
        self.initial_lr = 3e-3
        return super().configure_optimizers()


class nnUNetTrainerAdam1en2(nnUNetTrainerAdam1en3):
    """AdamW at ten times the rate."""

    def configure_optimizers(self) -> Any:
        """With the rate that ``__init__``, of a fixed signature, does not take."""
        self.initial_lr = 1e-2
        return super().configure_optimizers()


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

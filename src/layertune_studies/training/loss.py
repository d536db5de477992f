"""The loss of a study."""

import torch
from monai.losses import DiceCELoss
from torch import nn

from layertune_studies.config.study import Study
from layertune_studies.data.cases import Cases

__all__ = ["make_loss"]


def make_loss(study: Study, cases: Cases) -> nn.Module:
    """Make the loss of a study, which is called with the network's output and the labels.

    Args:
        study: The study, whose section ``loss`` says how the loss of a segmentation weighs the background.
        cases: The cases of the study.

    Returns:
        Cross-entropy for classification, the sum of Dice loss and cross-entropy for segmentation.
    """
    if cases.task == "classification":
        return nn.CrossEntropyLoss()
    config = study.loss
    weight = None
    if config.background_weight != 1:
        weight = torch.tensor([config.background_weight, *[1.0] * (cases.classes - 1)])
    return DiceCELoss(
        include_background=config.background_dice,
        to_onehot_y=True,
        softmax=True,
        batch=config.batch_dice,
        weight=weight,
    )

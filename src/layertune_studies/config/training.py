"""The sections of a study's file on its network and its training."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from layertune.layers.layer import Granularity
from layertune_studies.config.section import Count, Positive, Section, new_key

__all__ = ["Budget", "Loss", "Network", "Optimizer"]


class Network(Section):
    """The network that is fine-tuned.

    Attributes:
        name: A model of timm, a network of MONAI, ``module:factory``, or ``nnunet`` for the network that nnU-Net plans.
        arguments: Arguments of its constructor. The number of classes comes from the data.
        granularity: What counts as one layer: ``"module"``, ``"block"`` or ``"stage"``.
        depth: How depths are read: ``"I1"``, or ``"I2"`` in a U-Net.
        channels_last: Whether the channels lie beside each other in memory, which changes the speed and no number; some
            3D convolutions of few channels, and depthwise ones, are faster so on a CPU.
        reset_head: Whether a new head starts from PyTorch's default initialisation, and not from that of the network's
            constructor. timm's EfficientNets start theirs from weights up to 0.58, twenty times PyTorch's.
    """

    name: str
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    granularity: Granularity = "block"
    depth: Literal["I1", "I2"] = "I1"
    channels_last: bool = new_key(False)
    reset_head: bool = new_key(False)


class Optimizer(Section):
    """The optimizer and its schedule; a method that learns without a rate brings its own optimizer.

    Attributes:
        name: The optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        momentum: The momentum of SGD, from 0; other optimizers have none.
        nesterov: Whether the momentum of SGD is Nesterov's.
        weight_decay: Weight decay of the parameters with at least two dimensions.
        head_factor: Learning rate of the head divided by that of the other layers.
        schedule: How the learning rate changes: ``"constant"``, ``"cosine"`` (to 0) or ``"one-cycle"``.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    head_factor: Positive = 1.0
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"


class Budget(Section):
    """The length of each training.

    Attributes:
        unit: What is counted: ``"passes"``: every method gets as many forward and backward passes, so that exact MetaLR
            takes half the steps and AutoLR pays for its rejected trials; ``"steps"``: as many optimizer steps.
        amount: The number of passes or steps.
        batch: The number of cases in a batch.
        epoch: Steps of an epoch of nnU-Net; by default its own 250. The steps of a training are divided into epochs of
            at least this length, if there are as many.
    """

    unit: Literal["passes", "steps"] = "passes"
    amount: Count
    batch: Count = 16
    epoch: Count | None = new_key(None)


class Loss(Section):
    """The loss of a segmentation: Dice loss plus cross-entropy.

    Attributes:
        background_dice: Whether the background counts as a class of the Dice loss.
        background_weight: Weight of the background in the cross-entropy, where every other class has 1.
        batch_dice: Whether Dice is computed over all cases of a batch together, and not case by case.
    """

    background_dice: bool = True
    background_weight: Positive = 1.0
    batch_dice: bool = False

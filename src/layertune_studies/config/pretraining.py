"""The section of a study's file on pre-training: where the weights come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from layertune_studies.config.data import Data
from layertune_studies.config.section import Count, Positive, Section, new_key

__all__ = ["Pretraining"]


class Pretraining(Section):
    """Where the weights come from.

    Attributes:
        weights: A file of weights, or the name of known ones. Without it and without a task the weights are random.
        task: What the network is pre-trained on here, once for the study: ``"digits"`` (scikit-learn's handwritten
            digits, brought to the size of the images), ``"inverted"`` (other cases of the data set, their intensities
            inverted), ``"genesis"`` (other cases, without their labels: deformed volumes are restored) or
            ``"supervised"`` (the cases of ``data``, with their labels).
        data: Another data set that the task takes its training cases from; by default the study's own.
        cases: The number of cases of the task.
        steps: The number of steps of the task.
        batch: The number of cases in a batch of the task.
        lr: The highest learning rate of the task.
        optimizer: The optimizer of the task, ``"adamw"``, ``"adam"``, or ``"sgd"`` with a momentum of 0.9.
        schedule: How the learning rate changes: ``"one-cycle"`` (up and down again) or ``"cosine"`` (down to 0).
        cycle: The number of steps of the one cycle; by default one more than ``steps``.
        early: Stop after this part of the steps, as 8 for an eighth; the schedule stays that of all steps.
        head: Whether the pre-trained head is kept where it fits; otherwise the head starts from random weights.
        seed: Seed of the weights, and of the batches unless the study has a seed of its own.
    """

    weights: str | None = None
    task: Literal["digits", "inverted", "genesis", "supervised"] | None = None
    data: Data | None = new_key(None)
    cases: Count = 100
    steps: Count = 200
    batch: Count = 16
    lr: Positive = 5e-3
    optimizer: Literal["adamw", "adam", "sgd"] = new_key("adamw")
    schedule: Literal["one-cycle", "cosine"] = new_key("one-cycle")
    cycle: Count | None = new_key(None)
    early: Annotated[int, Field(ge=2)] | None = new_key(None)
    head: bool = new_key(True)
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_source(self) -> "Pretraining":
        if self.weights is not None and self.task is not None:
            raise ValueError("pretraining takes weights from a file or from a task, not from both; leave one out")
        if self.task == "supervised" and self.data is None:
            raise ValueError("the task supervised takes its cases from another data set; give pretraining.data")
        if self.data is not None and self.task not in ("genesis", "supervised"):
            raise ValueError("data is for the tasks genesis and supervised; leave it out")
        if self.cycle is not None and self.cycle < self.steps:
            raise ValueError(f"cycle is {self.cycle}, and has to be at least as long as steps, {self.steps}")
        return self

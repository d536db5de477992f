"""The YAML file of ``layertune rank``: network, task and budget."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from layertune_studies.config.section import Count, Positive, Section, problem_message
from layertune_studies.config.sets import MNI
from layertune_studies.config.yaml_file import load_section

__all__ = ["RankStudy", "load_rank_study"]


class RankStudy(Section):
    """Everything that a ranking depends on, except for the checkpoints.

    Attributes:
        network: A model of timm, a network of MONAI, or ``module:factory``.
        arguments: Arguments of its constructor.
        task: ``module:function`` that makes a ``RankTask``; or a task of the demo: ``mni152``, or a task of the Medical
            Segmentation Decathlon with up to two foreground classes.
        task_arguments: Arguments of that function; of a built-in task ``root``, ``size``, ``shots`` and ``held_out``.
        budget: Number of optimizer steps for each checkpoint (in the first round).
        full_budget: Number of steps that fine-tuning one checkpoint would take, for a comparison of times.
        halving: Continue with the better 1 / halving of the checkpoints only, for so many times more steps.
        keep: Number of checkpoints at which halving ends.
        optimizer: The optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"`` (momentum 0.9).
        lr: The learning rate of the optimizer, > 0.
        head: Whether the head trains too, which a new head needs.
        biases: Whether biases train too.
        seed: Seed of the network's own weights and of all batches.
        threads: Number of torch's threads.
    """

    network: str
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    task: str
    task_arguments: Mapping[str, Any] = Field(default_factory=dict)
    budget: Count
    full_budget: Count | None = None
    halving: Annotated[int, Field(ge=2)] | None = None
    keep: Count = 1
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-2
    head: bool = False
    biases: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1

    @model_validator(mode="after")
    def _task_is_known(self) -> "RankStudy":
        if ":" not in self.task and self.task != MNI and not self.task.startswith("Task"):
            raise ValueError(f"task {self.task!r} is neither module:function, nor {MNI}, nor a task of the Decathlon")
        return self


def load_rank_study(path: Path) -> RankStudy:
    """Read the file of a ranking and check it.

    Raises:
        StudyError: The file cannot be read, or a key or value is wrong; the message names the key.
    """
    return load_section(path, RankStudy, "ranking", _message)


def _message(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"])) or "the file"
    message = problem_message(problem, where, owner="a ranking", keys=RankStudy.model_fields)
    return message.removeprefix("the file: ")  # the path stands in front

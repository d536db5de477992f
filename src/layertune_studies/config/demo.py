"""The options of `layertune demo`, and the study that they make of its file."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from layertune.errors import LayertuneError
from layertune_studies.config.sets import named_set
from layertune_studies.config.study import Study

__all__ = ["DemoOptions", "OptionError", "demo_study"]


class OptionError(LayertuneError, ValueError):
    """An option of the demo is out of its range."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The options of the demo; where one is None, the demo's study file says the value.

    Attributes:
        out: Folder for the results, in which an interrupted run goes on.
        data: ``"mni152"``, brains made from the template that nilearn brings, or a task of the Medical Segmentation
            Decathlon with up to two foreground classes, for instance ``"Task04_Hippocampus"``.
        root: Folder that holds the task's folder.
        seed: Seed of cases, weights and batches, from 0.
        seeds: Number of times that the fine-tuning is repeated, each time with other labelled cases and batches.
        size: Voxels of a case, each side a multiple of 8.
        source: Number of cases of the source contrast, for pre-training.
        shots: Number of labelled cases of the target contrast, for fine-tuning.
        held_out: Number of validation cases; three times as many are test cases.
        pretrain_steps: Steps of the pre-training.
        steps: Steps of each fine-tuning.
        batch: Cases in a batch.
        threads: Threads of torch. With one the numbers are the same on any number of cores.
        validate_every: Steps between two points of a learning curve.

    Raises:
        OptionError: A number is below 1, or a side is no multiple of 8.

    Example:
        >>> DemoOptions(steps=0)
        Traceback (most recent call last):
        layertune_studies.config.demo.OptionError: steps is 0 and must be at least 1
    """

    out: Path = Path("layertune-demo")
    data: str | None = None
    root: Path | None = None
    seed: int | None = None
    seeds: int | None = None
    size: tuple[int, int, int] | None = None
    source: int | None = None
    shots: int | None = None
    held_out: int | None = None
    pretrain_steps: int | None = None
    steps: int | None = None
    batch: int | None = None
    threads: int | None = None
    validate_every: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1 and name != "seed":
                raise OptionError(f"{name} is {value} and must be at least 1")
        if self.seed is not None and self.seed < 0:
            raise OptionError(f"seed is {self.seed} and must not be negative")
        if self.size is not None and any(side < 16 or side % 8 for side in self.size):
            raise OptionError(f"size is {self.size}; each side must be a multiple of 8 and at least 16")


def demo_study(options: DemoOptions) -> tuple[Study, dict[str, Any]]:
    """Return the study of the demo, and the values of all options that its results depend on.

    Args:
        options: The options, which replace values of the study's file.
    """
    content = yaml.safe_load(files("layertune_studies").joinpath("demo.yaml").read_text(encoding="utf-8"))
    data, task = content["data"], content["pretraining"]
    values = {
        "data": data["set"],
        "seed": content["seed"],
        "seeds": content["seeds"],
        "size": tuple(data["size"]),
        "source": task["cases"],
        "shots": data["labelled"][0],
        "held_out": data["split"]["counts"][1],
        "pretrain_steps": task["steps"],
        "steps": content["budget"]["amount"],
        "batch": content["budget"]["batch"],
        "threads": content.get("threads", 1),
        "validate_every": content["curve"],
    }
    given = {name: value for name, value in vars(options).items() if value is not None}
    values |= {name: given[name] for name in values if name in given}
    source, held_out = values["source"], values["held_out"]
    counts = [source + values["shots"] * values["seeds"], held_out, 3 * held_out]
    data |= {"size": values["size"], "labelled": [values["shots"]], "reserved": source}
    data["split"] = {"counts": counts, "seed": values["seed"]}
    task["data"] |= {"size": values["size"], "split": {"counts": [source, 1, 1], "seed": values["seed"]}}
    task |= {"cases": source, "batch": values["batch"], "seed": values["seed"]}
    task |= {"steps": values["pretrain_steps"], "cycle": values["pretrain_steps"]}
    if values["data"] != data["set"]:
        data |= named_set(values["data"])
        task["task"] = "inverted"
        del task["data"]
    content |= {name: values[name] for name in ("seed", "seeds", "threads")}
    content["budget"] |= {"amount": values["steps"], "batch": values["batch"]}
    content["curve"] = values["validate_every"]
    return Study.model_validate(content), values

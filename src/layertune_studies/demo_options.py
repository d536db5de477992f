"""What can be set of the demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layertune.errors import LayertuneError

__all__ = ["DemoOptions", "OptionError"]


class OptionError(LayertuneError, ValueError):
    """An option of the demo is out of its range."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What can be set of the demo; the defaults are made for two cores of a CPU and a few minutes.

    Attributes:
        out: folder for results, and for going on after an interruption.
        data: ``"mni152"``, brains made from the template that nilearn brings, or a task of the Medical Segmentation
            Decathlon with up to two foreground classes, for instance ``"Task04_Hippocampus"``.
        root: folder that holds the task's folder.
        seed: what subjects, weights and batches are drawn with.
        seeds: how often fine-tuning is repeated, each time with other labelled cases and batches.
        size: voxels of a case, each side a multiple of 8.
        source: cases of the source contrast, for pre-training.
        shots: labelled cases of the target contrast, for fine-tuning.
        held_out: validation cases; three times as many are test cases.
        pretrain_steps: steps of pre-training.
        steps: steps of each fine-tuning.
        batch: cases in a batch.
        threads: of the CPU; with one the numbers are the same on any number of cores, and other work on the machine
            slows the demo least.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between two points of a learning curve.

    Raises:
        OptionError: a number below 1, or a side that is no multiple of 8.

    Example:
        >>> DemoOptions(steps=0)
        Traceback (most recent call last):
        layertune_studies.demo_options.OptionError: steps is 0 and must be at least 1
    """

    out: Path = Path("layertune-demo")
    data: str = "mni152"
    root: Path | None = None
    seed: int = 0
    seeds: int = 2
    size: tuple[int, int, int] = (40, 48, 40)
    source: int = 10
    shots: int = 3
    held_out: int = 4
    pretrain_steps: int = 120
    steps: int = 60
    batch: int = 2
    threads: int = 1
    checkpoint_every: int = 10
    validate_every: int = 15

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1 and name != "seed":
                raise OptionError(f"{name} is {value} and must be at least 1")
        if self.seed < 0:
            raise OptionError(f"seed is {self.seed} and must not be negative")
        if any(side < 16 or side % 8 for side in self.size):
            raise OptionError(f"size is {self.size}; each side must be a multiple of 8 and at least 16")

    def identity(self) -> dict[str, Any]:
        """What the results depend on: all but the places of things and how often they are kept."""
        places = ("out", "root", "checkpoint_every")
        return {name: value for name, value in vars(self).items() if name not in places}

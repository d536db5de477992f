"""Tasks of the Medical Segmentation Decathlon: the content of ``dataset.json``, seeded splits, images to predict."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layertune_monai.errors import LabelError, SplitError, TaskError

__all__ = ["TaskInfo", "images_in", "split_cases", "task_info"]

Case = dict[str, str]


@dataclass(frozen=True)
class TaskInfo:
    """The channels and the classes of a task.

    Attributes:
        channels: The names of the image's channels, such as ``("MRI",)``.
        labels: The names of the classes. The background is the first.
    """

    channels: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def num_channels(self) -> int:
        """The number of channels of an image."""
        return len(self.channels)

    @property
    def num_classes(self) -> int:
        """The number of classes, the background included."""
        return len(self.labels)


def task_info(folder: str | Path, data_format: Mapping[str, Any]) -> TaskInfo:
    """Read the channels and classes of a task from its ``dataset.json``, or else from the bundle's metadata.

    The metadata serves where the data is not at hand, as in an export.

    Args:
        folder: The folder of the task, such as ``data/Task04_Hippocampus``.
        data_format: The entry ``network_data_format`` of the bundle's ``metadata.json``.

    Raises:
        TaskError: ``dataset.json`` cannot be read or lacks an entry.
        LabelError: The labels are not numbered 0, 1, 2, ...

    Example:
        >>> inputs = {"image": {"channel_def": {"0": "MRI"}}}
        >>> outputs = {"pred": {"channel_def": {"0": "background", "1": "Anterior"}}}
        >>> task_info("nowhere", {"inputs": inputs, "outputs": outputs})
        TaskInfo(channels=('MRI',), labels=('background', 'Anterior'))
    """
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        channels, labels = data_format["inputs"]["image"]["channel_def"], data_format["outputs"]["pred"]["channel_def"]
        return TaskInfo(_in_order(channels, "channel_def"), _in_order(labels, "channel_def"))
    content = _read(path)
    return TaskInfo(_in_order(content["modality"], path), _in_order(content["labels"], path))


def split_cases(
    folder: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    train_cases: int | None = None,
    val_cases: int | None = None,
) -> dict[str, list[Case]]:
    """Split the labelled cases of a task into training and validation cases.

    Args:
        folder: The folder of the task.
        val_fraction: The share of the cases that is held out for validation, in (0, 1); at least one case.
        seed: The seed of the order of the cases. The same arguments give the same split.
        train_cases: The number of training cases to use, for fine-tuning with few. ``None`` uses all.
        val_cases: The number of validation cases to use. ``None`` uses all.

    Returns:
        The cases under ``"train"`` and ``"validation"``, each a dictionary with the paths ``"image"`` and ``"label"``.

    Raises:
        TaskError: The folder, its ``dataset.json`` or a file of a case is missing, or there are too few cases.
        SplitError: A number of cases is below 1, or the fraction is outside (0, 1).
    """
    _check_split(val_fraction, train_cases=train_cases, val_cases=val_cases)
    folder = Path(folder)
    cases = _labelled_cases(folder)
    order = np.random.RandomState(seed).permutation(len(cases)).tolist()
    held_out = max(1, round(val_fraction * len(cases)))
    parts = {"train": (order[held_out:], train_cases), "validation": (order[:held_out], val_cases)}
    for part, (indices, count) in parts.items():
        if len(indices) < (count or 1):
            raise TaskError(
                f"{folder} gives {len(indices)} cases for {part} ({len(cases)} labelled, val_fraction {val_fraction}) "
                f"where {count or 1} are asked for; ask for fewer, or change val_fraction"
            )
    return {part: [cases[index] for index in indices[:count]] for part, (indices, count) in parts.items()}


def images_in(folder: str | Path) -> list[str]:
    """List the NIfTI files of a folder, sorted by name.

    Args:
        folder: The folder of the images to predict.

    Raises:
        TaskError: The folder is missing or holds no such file.
    """
    folder = Path(folder)
    paths = sorted(str(path) for path in folder.glob("*.nii*") if not path.name.startswith("."))
    if not paths:
        fault = "holds no NIfTI file (*.nii.gz, *.nii)" if folder.is_dir() else "is no folder"
        raise TaskError(f"{folder} {fault}; give the folder with the images to predict: --images DIR")
    return paths


def _check_split(val_fraction: float, **counts: int | None) -> None:
    if not 0 < val_fraction < 1:
        raise SplitError(f"val_fraction is a share of the cases between 0 and 1, not {val_fraction}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise SplitError(f"{name} is a whole number from 1, not {count}; leave it out for all cases")


def _labelled_cases(folder: Path) -> list[Case]:
    path = folder / "dataset.json"
    if not path.is_file():
        fault = "has no dataset.json" if folder.is_dir() else "does not exist"
        raise TaskError(
            f"{folder} {fault}; get the task from http://medicaldecathlon.com and name its folder: --data_dir DIR, the "
            f"folder that holds {folder.name}, and --task {folder.name}; or --dataset_dir with the whole path"
        )
    cases = [
        {key: str(folder / entry[key]) for key in ("image", "label")}
        for entry in _read(path)["training"]
        if isinstance(entry, dict) and {"image", "label"} <= entry.keys()
    ]
    if not cases:
        raise TaskError(f"{path} lists no labelled case under 'training'; is it the file of the Decathlon?")
    missing = [case[key] for case in cases for key in case if not Path(case[key]).is_file()]
    if missing:
        raise TaskError(
            f"{len(missing)} of the {2 * len(cases)} files that {path} lists are missing, the first is {missing[0]}; "
            "was the task unpacked completely?"
        )
    return cases


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    absent = [key for key in ("modality", "labels", "training") if key not in content]
    if absent:
        raise TaskError(f"{path} lacks {', '.join(absent)}; is it the dataset.json of a Decathlon task?")
    return dict(content)


def _in_order(names: Mapping[str, str], source: object) -> tuple[str, ...]:
    """Return the names in the order of their numbers, which have to be 0, 1, 2, ..."""
    if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        raise LabelError(f"{source} numbers {', '.join(map(str, names))}; expected 0 to {len(names) - 1}, each once")
    return tuple(names[str(number)] for number in range(len(names)))

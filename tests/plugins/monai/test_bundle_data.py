"""The data of a task as the bundle reads it: splits, channels and classes, labels, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from decathlon_task import TASK, make_task
from layertune_monai import CheckLabelsd, images_in, split_cases, task_info
from layertune_monai.errors import LabelError, TaskError


def test_a_split_is_seeded_and_disjoint(tmp_path: Path) -> None:
    folder = make_task(tmp_path, cases=10)
    split = split_cases(folder, val_fraction=0.3, seed=1)
    train, validation = ({case["image"] for case in split[part]} for part in ("train", "validation"))
    assert (len(train), len(validation)) == (7, 3)
    assert not train & validation
    assert split == split_cases(folder, val_fraction=0.3, seed=1)
    assert split != split_cases(folder, val_fraction=0.3, seed=2)
    few = split_cases(folder, val_fraction=0.3, seed=1, train_cases=2, val_cases=1)
    assert few == {"train": split["train"][:2], "validation": split["validation"][:1]}, "fewer cases of the same split"


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=rf"{TASK} does not exist; get the task from http://medicaldecathlon.com"):
        split_cases(tmp_path / TASK)
    (tmp_path / TASK).mkdir()
    with pytest.raises(TaskError, match=r"has no dataset\.json"):
        split_cases(tmp_path / TASK)
    with pytest.raises(TaskError, match="holds no NIfTI file"):
        images_in(tmp_path / TASK)
    with pytest.raises(TaskError, match="is no folder"):
        images_in(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": []}, "lists no labelled case"),
        ({"training": [{"image": "./a.nii.gz", "label": "./b.nii.gz"}]}, "2 of the 2 files"),
        ({"labels": None}, "lacks labels"),
    ],
)
def test_a_broken_dataset_json_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = make_task(tmp_path) / "dataset.json"
    content = {key: value for key, value in (json.loads(path.read_text()) | change).items() if value is not None}
    path.write_text(json.dumps(content))
    with pytest.raises(TaskError, match=words):
        split_cases(path.parent)
    path.write_text("{")
    with pytest.raises(TaskError, match="cannot be read"):
        split_cases(path.parent)


def test_too_many_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"gives 4 cases for train .* where 9 are asked for"):
        split_cases(make_task(tmp_path, cases=5), train_cases=9)


def test_labels_must_be_numbered_from_0(tmp_path: Path) -> None:
    path = make_task(tmp_path) / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": {"0": "background", "2": "tumour"}}))
    with pytest.raises(LabelError, match="numbers 0, 2; expected 0 to 1"):
        task_info(path.parent, {})


@pytest.mark.parametrize("wrong", [3, -1, 0.5])
def test_a_label_without_a_class_is_refused(wrong: float) -> None:
    check = CheckLabelsd("label", num_classes=3)
    label = torch.tensor([0.0, 1.0, 2.0])
    assert check({"label": label, "image": 1})["label"] is label
    with pytest.raises(LabelError, match=rf"the label map holds the values {wrong:g}; this task has 3 classes"):
        check({"label": torch.tensor([0.0, wrong])})

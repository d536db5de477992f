"""What a study is told wrongly, and files that are damaged: one clear error each, with the place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from layertune.cli import app as cli
from layertune_studies.config.study import Data, Split, Study, load_study
from layertune_studies.data import cases as study_data
from layertune_studies.data.cases import Cases, load_cases
from layertune_studies.data.split import split_cases
from layertune_studies.errors import DataError, StudyError
from layertune_studies.training.metrics import classification_scores
from layertune_studies.training.pretraining import pretrain
from study_runs import study_of, volumes, write_images, write_study

VOLUMES = {"set": "volumes", "classes": 2, "split": {"folds": 3}}


def every_case(root: Path, **data: Any) -> Cases:
    """All cases, each looked at."""
    cases = load_cases(Data.model_validate(data), root)
    for part in (cases.train, cases.validation, cases.test):
        list(part)
    return cases


def pictures(root: Path, *folders: str, count: int = 4) -> Path:
    for shade, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (40 * shade, number, 0)).save(root / folder / f"{number}.png")
    return root


# What the file says


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"set": "busi", "size": [8]}, r"data: size is \[8\], and busi holds images; give 2 numbers"),
        ({"set": "busi", "size": [8, 8, 8]}, "and busi holds images; give 2 numbers"),
        ({"set": "hippocampus", "size": [8, 8]}, r"size is \[8, 8\], and hippocampus holds volumes; give 3 numbers"),
        ({"set": "acdc", "patch": [8, 8]}, r"data: patch is \[8, 8\], and acdc holds volumes; give 3 numbers"),
        ({"set": "acdc", "spacing": [1.0]}, r"data: spacing is \[1.0\], and acdc holds volumes; give 3 numbers"),
        ({"set": "acdc", "spacing": [0, 0, 0]}, "data.spacing.0: Input should be greater than 0"),
        ({"set": "acdc", "spacing": [1, 1, float("inf")]}, "data.spacing.2: Input should be a finite number"),
        ({"set": "acdc", "size": [8, 8, 0]}, "data.size.2: Input should be greater than or equal to 1"),
        ({"set": "acdc", "window": [1, 1]}, r"data: window is \[1.0, 1.0\]; give the lower number first"),
        ({"set": "acdc", "window": [5, -5]}, r"data: window is \[5.0, -5.0\]; give the lower number first"),
        ({"set": "acdc", "window": [0, float("nan")]}, "data.window.1: Input should be a finite number"),
        (
            {"set": "acdc", "size": [8, 8, 8], "patch": [8, 9, 8]},
            r"data: patch is \[8, 9, 8\], which does not fit into size \[8, 8, 8\]",
        ),
        ({"set": "busi", "patch": [4, 4]}, "data: patch crops images of one size; give data.size too"),
        ({"set": "busi", "spacing": [1, 1]}, "data: spacing is for volumes, and busi holds images"),
        ({"set": "pneumoniamnist", "window": [0, 1]}, "data: window is for volumes, and pneumoniamnist holds images"),
        ({"set": "busi", "split": {"group": "(patient"}}, r"data.split.group: '\(patient' is no regular expression"),
        ({"set": "busi", "normal": "benign"}, "data: normal is for a folder of your own, data.set images; busi has"),
    ],
)
def test_data_that_do_not_fit(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(write_study(tmp_path / "study.yaml", data=data))


def test_what_fits_is_taken() -> None:
    volume = Data.model_validate(
        {"set": "acdc", "size": [9, 9, 9], "patch": [8, 9, 8], "spacing": [1, 1, 2], "window": [-1, 1]}
    )
    assert (volume.patch, volume.spacing, volume.window) == ((8, 9, 8), (1, 1, 2), (-1, 1))
    assert Data.model_validate({"set": "busi", "size": [8, 9]}).size == (8, 9)


def test_a_group_that_takes_no_part_in_a_match() -> None:
    with pytest.raises(DataError, match=r"has no group in 7.png"):
        split_cases(["patient1_0.png", "7.png"], Split(group="(patient[0-9]+_)?[0-9].png"))


# Damaged files


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_volume_that_is_cut_off(tmp_path: Path, folder: str, share: float) -> None:
    rng = np.random.RandomState(0)
    volumes(tmp_path, image=rng.randn(40, 40, 40), label=rng.randint(0, 2, (40, 40, 40)))
    path = tmp_path / "volumes" / folder / "case0.nii.gz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"imagesTr/case0.nii.gz or its label cannot be read: .*; repair the files"):
        every_case(tmp_path, **VOLUMES, size=[8, 8, 8])


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "cut off":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("Not found")
        case "bits":
            content[1000] ^= 255
            path.write_bytes(content)
        case "array missing":
            np.savez(path, train_images=np.zeros((3, 28, 28), dtype=np.uint8))
        case "labels missing":
            arrays = dict(np.load(path))
            np.savez(path, **(arrays | {"val_labels": arrays["val_labels"][:2]}))


@pytest.mark.parametrize("how", ["cut off", "empty", "text", "bits", "array missing", "labels missing"])
def test_a_file_of_medmnist_that_is_damaged(tmp_path: Path, how: str) -> None:
    write_images(tmp_path)
    damage(tmp_path / "pneumoniamnist.npz", how)
    with pytest.raises(DataError, match=r"pneumoniamnist.npz cannot be read \(.*\); get it again. PneumoniaMNIST"):
        every_case(tmp_path, set="pneumoniamnist", classes=3)


def test_a_damaged_file_ends_a_run_with_one_line(tmp_path: Path) -> None:
    write_images(tmp_path)
    damage(tmp_path / "pneumoniamnist.npz", "cut off")
    config = write_study(tmp_path / "study.yaml")
    ended = CliRunner().invoke(
        cli.app, ["study", "run", str(config), "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert ended.exit_code == 2
    assert isinstance(ended.exception, SystemExit)
    told = " ".join(ended.output.split())
    assert "layertune: " in told
    assert "pneumoniamnist.npz cannot be read (it is cut off" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["pneumoniamnist_63.npz", "other.npz", "pneumoniamnist"])
def test_a_file_that_is_none_of_medmnists(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"{name} is none of MedMNIST's files: pathmnist, "):
        every_case(tmp_path, set="pneumoniamnist", folder=name)


def test_medmnists_larger_images_are_read_from_their_own_file(tmp_path: Path) -> None:
    write_images(tmp_path)  # of 28 x 28, beside it
    images = np.zeros((3, 64, 64), dtype=np.uint8)
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.zeros((3, 1), dtype=np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "pneumoniamnist_64.npz", **arrays)
    assert every_case(tmp_path, set="pneumoniamnist", folder="pneumoniamnist_64.npz").shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("folder", "content"),
    [("Task04_Hippocampus", "{"), ("Task04_Hippocampus", '{"name": "Hippocampus"}'), ("mine", '{"training": []}')],
)
def test_a_folder_that_is_of_no_task_of_the_decathlon(tmp_path: Path, folder: str, content: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=rf"{folder}/dataset.json is of no task of the Decathlon \(.*Layout: "):
        every_case(tmp_path, set="hippocampus", folder=folder)


def test_an_image_that_is_cut_off(tmp_path: Path) -> None:
    root = pictures(tmp_path, "images/a", "images/b")
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    path = root / "images" / "b" / "0.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(DataError, match=r"images/b/0.png cannot be read as an image: "):
        every_case(root, set="images", classes=2, size=[8, 8], split={"folds": 3})


def test_a_file_in_place_of_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(DataError, match="images holds no images in folders of classes"):
        every_case(tmp_path, set="images", classes=2)


# Which class is the normal one


def test_the_normal_finding_of_breastmnist_is_class_0(tmp_path: Path) -> None:
    write_images(tmp_path, classes=2)
    (tmp_path / "pneumoniamnist.npz").rename(tmp_path / "breastmnist.npz")
    there = np.load(tmp_path / "breastmnist.npz")["test_labels"][:, 0]  # 0 malignant, 1 normal or benign
    labels = torch.stack([case.label for case in every_case(tmp_path, set="breastmnist").test])
    assert labels.tolist() == (1 - there).tolist()
    all_called_malignant = torch.tensor([[0.1, 0.9]]).expand(len(labels), 2)
    scores = classification_scores(all_called_malignant, labels)
    assert (scores["sensitivity"], scores["specificity"]) == (1, 0)


def test_pneumoniamnist_keeps_its_numbers(tmp_path: Path) -> None:
    write_images(tmp_path, classes=2)
    there = np.load(tmp_path / "pneumoniamnist.npz")["test_labels"][:, 0]  # 0 normal, 1 pneumonia
    assert [int(case.label) for case in every_case(tmp_path, set="pneumoniamnist").test] == there.tolist()


@pytest.mark.parametrize(("normal", "order"), [(None, "covid healthy other"), ("healthy", "healthy covid other")])
def test_the_normal_finding_of_a_folder_of_ones_own(tmp_path: Path, normal: str | None, order: str) -> None:
    parts = [f"images/{part}/{name}" for part in ("train", "test") for name in ("covid", "healthy", "other")]
    root = pictures(tmp_path, *parts)
    cases = every_case(root, set="images", classes=3, normal=normal)
    shade = {"covid": 3, "healthy": 4, "other": 5}  # of the test images, see pictures
    found = {int(case.label): round(float((case.image[0, 0, 0] + 1) * 127.5) / 40) for case in cases.test}
    assert found == {number: shade[name] for number, name in enumerate(order.split())}


def test_a_normal_finding_that_is_no_class(tmp_path: Path) -> None:
    root = pictures(tmp_path, "images/covid", "images/healthy")
    with pytest.raises(DataError, match=r"data.normal 'helthy' is no class of .*images; there are covid, healthy"):
        every_case(root, set="images", classes=2, normal="helthy")


def test_a_class_that_only_the_training_images_have_moves_no_other(tmp_path: Path) -> None:
    root = pictures(tmp_path, "images/train/a", "images/train/b", "images/train/c", "images/test/b", "images/test/c")
    cases = every_case(root, set="images", classes=3, split={"folds": 3})
    assert {int(case.label) for case in cases.test} == {1, 2}


def test_a_setting_that_is_not_used_leaves_the_names_of_trials_alone() -> None:
    assert "normal" not in Data(set="images", classes=2).model_dump()
    assert Data(set="images", classes=2, normal="a").model_dump()["normal"] == "a"


# Memory and threads


def test_cases_are_held_up_to_a_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes(tmp_path)
    case = every_case(tmp_path, **VOLUMES).train[0]
    monkeypatch.setattr(study_data, "CACHE_BYTES", 2 * (case.image.nbytes + case.label.nbytes))
    cases = load_cases(Data.model_validate(VOLUMES), tmp_path)
    first, second = cases.train[0], cases.train[1]
    assert cases.train[0] is first
    assert cases.train[1] is second
    _ = cases.test[0]
    again = cases.train[0]
    assert again is not first
    assert torch.equal(again.image, first.image)


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_pretraining_has_the_threads_of_the_study(tmp_path: Path, threads: int) -> None:
    write_images(tmp_path)
    task = {"task": "digits", "cases": 4, "steps": 1, "batch": 2}
    network = {"name": "test_resnet"}
    study = Study.model_validate(study_of(pretraining=task, network=network, threads=threads + 1))
    seen: list[int] = []
    pretrain(study, load_cases(study.data, tmp_path), tmp_path, lambda _: seen.append(torch.get_num_threads()))
    assert seen == [threads + 1]


def test_as_many_classes_as_there_are_folders(tmp_path: Path) -> None:
    root = pictures(tmp_path, "images/covid", "images/healthy")
    with pytest.raises(DataError, match=r"data.classes is 3, and .*images has 2 folders of classes: covid, healthy"):
        every_case(root, set="images", classes=3)

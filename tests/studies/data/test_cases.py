"""A study's cases: read, split, drawn, and refused with one clear error."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize as torchvision_normalise

from layertune_studies.config.sets import SETS
from layertune_studies.config.study import Data, Split
from layertune_studies.data.case import Case
from layertune_studies.data.cases import Cases, LazyCases, checked, draw, load_cases
from layertune_studies.data.split import split_cases
from layertune_studies.errors import DataError
from study_runs import volumes, write_images


def data(**options: Any) -> Data:
    return Data.model_validate({"set": "pneumoniamnist", "classes": 3, **options})


def pictures(root: Path, layout: list[str], count: int = 4, *, size: int = 8) -> Path:
    for folder in layout:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (size, size), (10 * number, 0, 0))
            picture.save(root / folder / f"patient{number // 2}_{number}.png")
    return root


def test_a_medmnist_file_with_its_own_split(tmp_path: Path) -> None:
    write_images(tmp_path)
    cases = load_cases(data(validation=5), tmp_path)
    assert [len(part) for part in (cases.train, cases.validation, cases.test)] == [12, 5, 6]
    assert (cases.classes, cases.task, cases.shape) == (3, "classification", (1, 28, 28))
    assert [int(case.label) for case in cases.train[:4]] == [0, 1, 2, 0]
    assert all(float(case.image.min()) >= -1 and float(case.image.max()) <= 1 for case in cases.test)


def test_the_real_chest_xrays(xrays_dir: Path) -> None:
    cases = load_cases(Data(set="pneumoniamnist"), xrays_dir)
    assert [len(part) for part in (cases.train, cases.validation, cases.test)] == [4708, 524, 624]


def test_real_hippocampi(data_dir: Path) -> None:
    cases = load_cases(Data.model_validate({"set": "hippocampus", "size": [40, 56, 40], "test": 3}), data_dir)
    case = cases.test[0]
    assert (cases.classes, len(cases.test), tuple(case.image.shape)) == (3, 3, (1, 40, 56, 40))
    assert set(case.label.unique().tolist()) == {0, 1, 2}
    assert float(case.image.mean()) == pytest.approx(0, abs=0.3)


def test_folders_of_classes_are_cut_into_folds(tmp_path: Path) -> None:
    root = pictures(tmp_path, ["busi/normal", "busi/benign", "busi/malignant"])
    config = {"set": "busi", "size": [6, 6], "split": {"folds": 3, "group": r"(\w+/patient\d)"}}
    cases = load_cases(Data.model_validate(config), root)
    assert cases.shape == (3, 6, 6)
    parts = [len(part) for part in (cases.train, cases.validation, cases.test)]
    assert parts == [4, 4, 4]
    assert sorted(int(case.label) for part in (cases.train, cases.validation, cases.test) for case in part) == [
        *[0] * 4,
        *[1] * 4,
        *[2] * 4,
    ]


@pytest.mark.parametrize(("name", "counts"), [("breast-ultrasound", (3, 780)), ("brain-tumour-mri", (4, 2870))])
def test_the_real_folders_of_images(data_dir: Path, name: str, counts: tuple[int, int]) -> None:
    if not (data_dir / SETS[name].folder).is_dir():
        pytest.skip(f"no {SETS[name].folder} in the folder that LAYERTUNE_DATA names")
    config = {"set": name, "size": [72, 72], "patch": [64, 64], "normalise": "imagenet"}
    cases = load_cases(Data.model_validate(config), data_dir)
    parts = [len(part) for part in (cases.train, cases.validation, cases.test)]
    assert (cases.classes, sum(parts)) == counts
    assert [part / sum(parts) for part in parts] == pytest.approx([0.6, 0.2, 0.2], abs=0.001)
    assert cases.shape == (3, 64, 64)


def test_images_are_normalised_as_those_of_imagenet(tmp_path: Path) -> None:
    write_images(tmp_path)
    plain, normalised = (load_cases(data(**more), tmp_path).train[0].image for more in ({}, {"normalise": "imagenet"}))
    expected = torchvision_normalise((plain.expand(3, -1, -1) + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert normalised.allclose(expected, atol=1e-6)


def test_a_sets_own_train_and_test_folders_stay_apart(tmp_path: Path) -> None:
    folders = [f"chest_xray/{part}/{name}" for part in ("train", "test") for name in ("NORMAL", "PNEUMONIA")]
    cases = load_cases(Data.model_validate({"set": "chest-xray", "split": {"folds": 4}}), pictures(tmp_path, folders))
    assert [len(part) for part in (cases.train, cases.validation, cases.test)] == [6, 2, 8]


def test_nifti_volumes_are_normalised_and_cropped(tmp_path: Path) -> None:
    config = {"set": "volumes", "classes": 2, "patch": [6, 6, 6], "split": {"folds": 3}}
    cases = load_cases(Data.model_validate(config), volumes(tmp_path))
    assert (cases.task, cases.shape, len(cases.train)) == ("segmentation", (1, 6, 6, 6), 2)
    case = cases.train[0]
    assert float(case.image.mean()) == pytest.approx(0, abs=1e-5)
    assert float(case.image.std()) == pytest.approx(1, abs=0.01)
    assert case.label.sum() in (18, 27)


def test_a_window_of_intensities(tmp_path: Path) -> None:
    config = {"set": "volumes", "classes": 2, "window": [0, 1], "split": {"folds": 3}}
    case = load_cases(Data.model_validate(config), volumes(tmp_path)).train[0]
    assert (float(case.image.min()), float(case.image.max())) == (0, 1)


def test_volumes_are_resampled_and_scaled_between_percentiles(tmp_path: Path) -> None:
    config = {"set": "volumes", "classes": 2, "resample": [4, 6, 8], "percentiles": [5, 95], "split": {"folds": 3}}
    cases = load_cases(Data.model_validate(config), volumes(tmp_path))
    case = cases.train[0]
    assert case.image.shape == case.label.shape == cases.shape == (1, 4, 6, 8)
    assert (float(case.image.min()), float(case.image.max())) == (0, 1)
    assert case.label.unique().tolist() == [0, 1]


def test_brains_are_made_as_counted_and_look_alike_in_another_contrast() -> None:
    config = {"set": "mni152", "size": [16, 24, 16], "split": {"counts": [3, 2, 1]}}
    cases, others = (load_cases(Data.model_validate(config | more), None) for more in ({}, {"contrast": "t1"}))
    assert [len(part) for part in (cases.train, cases.validation, cases.test)] == [3, 2, 1]
    assert (cases.classes, cases.task, cases.shape) == (3, "segmentation", (1, 16, 24, 16))
    assert len({case.image.numpy().tobytes() for case in (*cases.train, *cases.validation, *cases.test)}) == 6
    for one, other in zip(cases.train, others.train, strict=True):
        assert one.label.equal(other.label)
        assert not one.image.equal(other.image)


def test_all_classes_but_the_first_may_count_as_one(tmp_path: Path) -> None:
    write_images(tmp_path)
    cases = load_cases(data(binary=True), tmp_path)
    assert (cases.classes, {int(case.label) for case in cases.train}) == (2, {0, 1})


# Splits


def test_groups_stay_together_and_every_case_is_in_one_part() -> None:
    paths = [f"video{number // 3}/{number}.png" for number in range(30)]
    for fold in range(5):
        parts = split_cases(paths, Split(folds=5, fold=fold, group="(video[0-9]+)"))
        assert sorted(chain(*parts)) == list(range(30))
        videos = [{paths[number].split("/")[0] for number in part} for part in parts]
        assert not videos[0] & videos[1]
        assert not videos[0] & videos[2]
        assert not videos[1] & videos[2]


def test_the_folds_test_every_case_once() -> None:
    paths = [f"{number}.png" for number in range(11)]
    tests = [split_cases(paths, Split(folds=4, fold=fold))[2] for fold in range(4)]
    assert sorted(chain(*tests)) == list(range(11))


def test_counts_deal_out_the_shuffled_cases() -> None:
    paths = [f"{number}.png" for number in range(11)]
    parts = split_cases(paths, Split(counts=(4, 2, 3), seed=1))
    assert [len(part) for part in parts] == [4, 2, 3]
    assert [*chain(*parts)] == np.random.RandomState(1).permutation(11)[:9].tolist()
    with pytest.raises(DataError, match="asks for 12 cases, and there are 11; ask for fewer"):
        split_cases(paths, Split(counts=(9, 2, 1)))


def made(count: int) -> Cases:
    cases = LazyCases(lambda number: Case(torch.full((1, 2, 2), float(number)), torch.tensor(0)), range(count))
    return Cases(cases, cases[:1], cases[:1], 2, "classification", (1, 2, 2))


def test_a_seed_draws_its_cases_once_and_leaves_those_alone_that_were_pretrained_on() -> None:
    drawn = draw(made(20), 6, seed=1, reserved=10)
    numbers = [int(case.image[0, 0, 0]) for case in drawn.train]
    assert len(set(numbers)) == 6
    assert min(numbers) >= 10
    assert [int(case.image[0, 0, 0]) for case in draw(made(20), 6, seed=1, reserved=10).train] == numbers
    assert [int(case.image[0, 0, 0]) for case in draw(made(20), 6, seed=2, reserved=10).train] != numbers


def test_disjoint_seeds_share_no_case() -> None:
    drawn = [draw(made(20), 4, seed=seed, reserved=10, disjoint=True).train for seed in (0, 1)]
    assert [[int(case.image[0, 0, 0]) for case in cases] for cases in drawn] == [[10, 11, 12, 13], [14, 15, 16, 17]]
    with pytest.raises(DataError, match="3 seeds with 4 labelled cases of their own each need 12 training cases"):
        draw(made(20), 4, seed=2, reserved=10, disjoint=True)


def test_a_holdout_is_for_meta_batches_alone() -> None:
    drawn = draw(made(20), 10, seed=0, holdout=0.3)
    meta, train = ({int(case.image[0, 0, 0]) for case in part} for part in (drawn.meta, drawn.train))
    assert (len(meta), len(train), meta & train) == (3, 7, set())
    assert draw(made(20), 10, seed=0).meta is not None


# One clear error


@pytest.mark.parametrize("name", ["pneumoniamnist", "busi", "hippocampus", "acdc"])
def test_a_missing_set_is_answered_with_its_page(tmp_path: Path, name: str) -> None:
    for root in (tmp_path, None):
        with pytest.raises(DataError, match=r"Source: .*Licence: .*Layout: ") as caught:
            load_cases(Data(set=name), root)
        assert SETS[name].page() in str(caught.value)


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (Case(torch.full((1, 2, 2), torch.nan), torch.tensor(0)), {}, "a.png: 4 of its values are not finite"),
        (Case(torch.full((1, 2, 2), torch.inf), torch.tensor(0)), {}, "are not finite; repair the file"),
        (
            Case(torch.zeros(1, 2, 2), torch.tensor(3)),
            {},
            "its label is 3, and the 3 classes are counted from 0 to 2",
        ),
        (Case(torch.zeros(1, 2, 2), torch.tensor(-1)), {}, "its label is -1"),
        (Case(torch.zeros(3, 2, 2), torch.tensor(0)), {}, "it has 3 channels, and the first image has 1"),
        (Case(torch.zeros(1, 4, 2), torch.tensor(0)), {}, r"size is \(4, 2\), and that of the first image \(2, 2\)"),
        (Case(torch.zeros(1, 2, 2, 2), torch.tensor(0)), {"sizes": False}, r"its size is \(2, 2, 2\)"),
        (
            Case(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3, dtype=torch.int16)),
            {},
            r"its image has the size \(2, 2\), and its label \(2, 3\)",
        ),
    ],
)
def test_cases_that_cannot_be_used(case: Case, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(case, "a.png", **({"classes": 3, "like": (1, 2, 2), "sizes": True} | options))


def test_images_of_mixed_sizes(tmp_path: Path) -> None:
    root = pictures(tmp_path, ["busi/normal", "busi/benign"])
    pictures(tmp_path, ["busi/malignant"], size=9)
    cases = load_cases(Data.model_validate({"set": "busi", "split": {"folds": 3}}), root)
    with pytest.raises(DataError, match=r"its size is .* and that of the first image .*give data.size"):
        list(cases.train), list(cases.validation), list(cases.test)


def test_a_volume_with_nan_voxels_is_named(tmp_path: Path) -> None:
    broken = np.zeros((8, 8, 8))
    broken[0, 0, 0] = np.nan
    root = volumes(tmp_path, image=broken, label=np.zeros((8, 8, 8)))
    cases = load_cases(Data.model_validate({"set": "volumes", "classes": 2, "split": {"folds": 3}}), root)
    with pytest.raises(DataError, match=r"case0.nii.gz: .* of its values are not finite"):
        [list(part) for part in (cases.train, cases.validation, cases.test)]


def test_a_volume_without_a_label(tmp_path: Path) -> None:
    root = volumes(tmp_path)
    (root / "volumes" / "labelsTr" / "case3.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no label for case3.nii.gz in labelsTr. A folder of volumes"):
        load_cases(Data(set="volumes", classes=2), root)


def test_a_fold_without_a_case(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fold 6 of 7 has no case: there are 6 groups of cases; choose fewer folds"):
        load_cases(Data.model_validate({"set": "volumes", "classes": 2, "split": {"folds": 7}}), volumes(tmp_path))


def test_a_group_that_a_path_has_not() -> None:
    with pytest.raises(DataError, match=r"'patient\[0-9\]\+' has no group in a.png"):
        split_cases(["a.png"], Split(group="patient[0-9]+"))


@pytest.mark.parametrize(("labelled", "holdout"), [(11, None), (2, 0.1)])
def test_more_labelled_cases_than_there_are_and_a_holdout_of_none(labelled: int, holdout: float | None) -> None:
    with pytest.raises(DataError, match=r"11 labelled cases were asked|leaves a part with no case"):
        draw(made(20), labelled, seed=0, reserved=10, holdout=holdout)


def test_a_class_that_the_set_has_not(tmp_path: Path) -> None:
    root = pictures(tmp_path, ["busi/normal", "busi/benine"])
    with pytest.raises(DataError, match="the folder benine is no class of busi: normal, benign, malignant"):
        load_cases(Data(set="busi"), root)


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    root = pictures(tmp_path, ["busi/normal", "busi/benign"])
    cases = load_cases(Data.model_validate({"set": "busi", "split": {"folds": 3}}), root)
    for path in (root / "busi" / "benign").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"benign/patient.*png cannot be read as an image"):
        [list(part) for part in (cases.train, cases.validation, cases.test)]

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Compose, Lambdad

from layertune_studies.data.brains import SOURCE, TARGET, Cohort, augmentation, make_brain, make_cohort, tissue_maps
from layertune_studies.data.case import Case, batch_of
from layertune_studies.errors import DataError

SIZE = (16, 24, 16)


@pytest.fixture(scope="module")
def maps() -> torch.Tensor:
    return tissue_maps(SIZE)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort("mni152", root=None, size=SIZE, source=2, shots=2, seeds=2, held_out=1, seed=3)


def test_maps_are_shares_of_a_voxel(maps: torch.Tensor) -> None:
    assert maps.shape == (3, *SIZE)
    assert maps.min() >= 0
    assert maps.sum(0).max() <= 1 + 1e-5
    litres = maps.sum(dim=(1, 2, 3)) * (168 * 196 * 168 / (16 * 24 * 16)) / 1e6
    assert 0.5 < litres[1] < 1.3, "grey matter of an adult brain"
    assert 0.3 < litres[2] < 0.9, "white matter of an adult brain"


def test_contrasts_order_the_tissues_differently(maps: torch.Tensor) -> None:
    source, target = (make_brain(maps, contrast, seed=5) for contrast in (SOURCE, TARGET))
    assert torch.equal(source.label, target.label), "one seed, one anatomy"
    grey, white = source.label == 1, source.label == 2
    t1, t2 = (float(subject.image[white].mean() - subject.image[grey].mean()) for subject in (source, target))
    assert t1 > 0.3, "T1: white matter is the brighter tissue"
    assert t2 < 0.1, "T2: it is not, even with grey matter darkened by the air beside it in voxels this large"


def test_images_are_normalised_and_labels_small(cohort: Cohort) -> None:
    for subject in [*cohort.source, *cohort.train[0], *cohort.validation, *cohort.test]:
        assert subject.image.shape == subject.label.shape == (1, *SIZE)
        torch.testing.assert_close(subject.image.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(subject.image.std(), torch.tensor(1.0), atol=1e-3, rtol=0)
        assert subject.label.dtype == torch.uint8
        assert type(subject.image) is type(subject.label) is torch.Tensor
        assert set(subject.label.unique().tolist()) == {0, 1, 2}


def test_a_cohort_depends_on_its_seed_alone(cohort: Cohort) -> None:
    again, other = (
        make_cohort("mni152", root=None, size=SIZE, source=2, shots=2, seeds=2, held_out=1, seed=seed)
        for seed in (3, 4)
    )
    assert all(torch.equal(a.image, b.image) for a, b in zip(cohort.test, again.test, strict=True))
    assert not torch.equal(cohort.test[0].image, other.test[0].image)


def test_no_case_serves_twice(cohort: Cohort) -> None:
    cases = [*cohort.source, *cohort.train[0], *cohort.train[1], *cohort.validation, *cohort.test]
    assert len(cases) == 2 + 2 * 2 + 1 + 3
    assert len({tuple(case.image.flatten()[:64].tolist()) for case in cases}) == len(cases)


def test_a_batch_depends_on_its_key_alone(cohort: Cohort) -> None:
    torch.manual_seed(0)
    first = batch_of(cohort.source, 2, key=(0, 0, 7), augment=augmentation())
    torch.manual_seed(1)
    again = batch_of(cohort.source, 2, key=(0, 0, 7), augment=augmentation())
    other = batch_of(cohort.source, 2, key=(0, 0, 8), augment=augmentation())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2, 1, *SIZE)


def test_a_plain_batch_holds_the_cases_themselves(cohort: Cohort) -> None:
    images, labels = batch_of(cohort.source, 2, key=(0,))
    assert {tuple(image.flatten().tolist()) for image in images} == {
        tuple(case.image.flatten().tolist()) for case in cohort.source
    }
    assert labels.shape == images.shape


@pytest.mark.parametrize("root", [None, Path("nowhere")])
def test_a_missing_task_names_its_source_and_layout(root: Path | None) -> None:
    with pytest.raises(DataError, match=r"(?s)medicaldecathlon\.com.*--root DIR.*dataset\.json, imagesTr/"):
        make_cohort("Task04_Hippocampus", root=root, size=SIZE, source=1, shots=1, seeds=1, held_out=1, seed=0)


def test_decathlon_cases_have_inverted_sources(data_dir: Path) -> None:
    options = {"root": data_dir, "size": (40, 56, 40), "shots": 1, "seeds": 1, "held_out": 1, "seed": 0}
    straight = make_cohort("Task04_Hippocampus", source=2, **options)
    shifted = make_cohort("Task04_Hippocampus", source=1, **options)
    torch.testing.assert_close(straight.source[0].image, shifted.source[0].image)
    torch.testing.assert_close(straight.source[1].image, -shifted.train[0][0].image)
    assert straight.test[0].label.unique().tolist() == [0, 1, 2]


def test_too_few_decathlon_cases_are_refused(data_dir: Path) -> None:
    with pytest.raises(DataError, match=r"needs 10005 labelled cases of Task04_Hippocampus, and .* holds"):
        make_cohort("Task04_Hippocampus", root=data_dir, size=SIZE, source=10000, shots=1, seeds=1, held_out=1, seed=0)


def test_augmenting_without_metadata_gives_the_same_bits_and_leaves_the_switch_as_it_was() -> None:
    subjects = [Case(torch.rand(1, 6, 6, 6), torch.randint(3, (1, 6, 6, 6), dtype=torch.uint8)) for _ in range(4)]
    image, label = batch_of(subjects, 4, key=(0,), augment=augmentation())
    assert get_track_meta()
    rng = np.random.RandomState(int(np.random.SeedSequence((0,)).generate_state(1)[0]))
    order = rng.choice(4, 4, replace=False)
    recorded = augmentation().set_random_state(state=rng)
    cases = [recorded(vars(subjects[int(index)])) for index in order]
    assert isinstance(cases[0]["image"], MetaTensor)
    assert torch.equal(image, torch.stack([case["image"].as_tensor() for case in cases]))
    assert torch.equal(label, torch.stack([case["label"].as_tensor() for case in cases]))
    with pytest.raises(RuntimeError):
        batch_of(subjects, 4, key=(0,), augment=Compose([Lambdad("image", lambda _: 1 / 0)]))
    assert get_track_meta()

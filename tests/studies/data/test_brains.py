"""Made brains: shares of tissues, contrasts, and images that are normalised."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Compose, Lambdad

from layertune_studies.config.data import Augment
from layertune_studies.data.batches import augmentation
from layertune_studies.data.brains import CONTRASTS, make_brain, tissue_maps
from layertune_studies.data.case import Case, batch_of, seed_from

SIZE = (16, 24, 16)


@pytest.fixture(scope="module")
def maps() -> torch.Tensor:
    return tissue_maps(SIZE)


def augment() -> Compose:
    return Compose(augmentation(Augment()))


def test_maps_are_shares_of_a_voxel(maps: torch.Tensor) -> None:
    assert maps.shape == (3, *SIZE)
    assert maps.min() >= 0
    assert maps.sum(0).max() <= 1 + 1e-5
    litres = maps.sum(dim=(1, 2, 3)) * (168 * 196 * 168 / (16 * 24 * 16)) / 1e6
    assert 0.5 < litres[1] < 1.3, "grey matter of an adult brain"
    assert 0.3 < litres[2] < 0.9, "white matter of an adult brain"


def test_contrasts_order_the_tissues_differently(maps: torch.Tensor) -> None:
    first, second = (make_brain(maps, CONTRASTS[contrast], seed=5) for contrast in ("t1", "t2"))
    assert torch.equal(first.label, second.label), "one seed, one anatomy"
    grey, white = first.label == 1, first.label == 2
    t1, t2 = (float(case.image[white].mean() - case.image[grey].mean()) for case in (first, second))
    assert t1 > 0.3, "T1: white matter is the brighter tissue"
    assert t2 < 0.1, "T2: it is not, even with grey matter darkened by the air beside it in voxels this large"


def test_images_are_normalised_and_labels_small(maps: torch.Tensor) -> None:
    for seed, contrast in enumerate(CONTRASTS.values()):
        case = make_brain(maps, contrast, seed=seed)
        assert case.image.shape == case.label.shape == (1, *SIZE)
        torch.testing.assert_close(case.image.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(case.image.std(), torch.tensor(1.0), atol=1e-3, rtol=0)
        assert case.label.dtype == torch.uint8
        assert type(case.image) is type(case.label) is torch.Tensor
        assert set(case.label.unique().tolist()) == {0, 1, 2}


def test_a_brain_depends_on_its_seed_alone(maps: torch.Tensor) -> None:
    one, again, other = (make_brain(maps, CONTRASTS["t2"], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.image, again.image)
    assert not torch.equal(one.image, other.image)


# Batches of cases


def cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 6, 6, 6, generator=generator)
    return [Case(image, (2 * image).round().to(torch.uint8)) for image in images]


def test_a_batch_depends_on_its_key_alone() -> None:
    torch.manual_seed(0)
    first = batch_of(cases(), 2, key=(0, 0, 7), augment=augment())
    torch.manual_seed(1)
    again = batch_of(cases(), 2, key=(0, 0, 7), augment=augment())
    other = batch_of(cases(), 2, key=(0, 0, 8), augment=augment())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2, 1, 6, 6, 6)


def test_a_plain_batch_holds_the_cases_themselves() -> None:
    images, labels = batch_of(cases(), 4, key=(0,))
    assert {tuple(image.flatten().tolist()) for image in images} == {
        tuple(case.image.flatten().tolist()) for case in cases()
    }
    assert labels.shape == images.shape


def test_augmenting_without_metadata_gives_the_same_bits_and_leaves_the_switch_as_it_was() -> None:
    image, label = batch_of(cases(), 4, key=(0,), augment=augment())
    assert get_track_meta()
    rng = np.random.RandomState(seed_from(0))
    order = rng.choice(4, 4, replace=False)
    recorded = augment().set_random_state(state=rng)
    parts = [recorded(vars(cases()[int(index)])) for index in order]
    assert isinstance(parts[0]["image"], MetaTensor)
    assert torch.equal(image, torch.stack([part["image"].as_tensor() for part in parts]))
    assert torch.equal(label, torch.stack([part["label"].as_tensor() for part in parts]))
    with pytest.raises(RuntimeError):
        batch_of(cases(), 4, key=(0,), augment=Compose([Lambdad("image", lambda _: 1 / 0)]))
    assert get_track_meta()

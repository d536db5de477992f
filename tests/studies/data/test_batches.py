"""Batches depend on their keys alone, and are augmented and cropped as the study says."""

import torch

from layertune_studies.config.data import Augment, Data
from layertune_studies.data.batches import META, TRAINING, batch_key, batch_maker
from layertune_studies.data.case import Case

VOLUMES = {"set": "volumes", "classes": 2}


def cases(count: int = 3) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 8, 8, 8, generator=generator)
    return [Case(image, image.round().to(torch.uint8)) for image in images]


def test_keys_differ_by_seed_purpose_and_step() -> None:
    keys = {
        batch_key(base, seed, purpose, step)
        for base in (None, 0, 1)
        for seed in (0, 1)
        for purpose in (TRAINING, META)
        for step in (0, 1)
    }
    assert len(keys) == 3 * 2 * 2 * 2
    assert batch_key(None, 5, META, 7) == (5, META, 7), "as version 0.1 drew them"


def test_held_batches_are_made_once_and_no_more_are_held_than_fit() -> None:
    asked: list[int] = []

    def key(step: int) -> tuple[int, ...]:
        asked.append(step)
        return (step,)

    data = Data.model_validate(VOLUMES)
    one = 2 * 8**3 * (4 + 1)
    batch = batch_maker(cases(), data, count=2, key=key, augment=True, hold=2 * one + 1)
    first = [batch(step) for step in range(3)]
    again = [batch(step) for step in range(3)]
    assert asked == [0, 1, 2, 2]
    assert all(a.equal(b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))


def test_an_augmentation_of_no_strength_changes_nothing() -> None:
    data = Data.model_validate({**VOLUMES, "augment": {"flip": 0, "contrast": 0, "brightness": 0, "noise": 0}})
    assert data.augment == Augment(flip=0, contrast=0, brightness=0, noise=0)
    image, _ = batch_maker(cases(1), data, count=1, key=lambda step: (step,), augment=True)(0)
    torch.testing.assert_close(image[0], cases(1)[0].image)


def test_a_patch_is_cropped_from_image_and_label_alike() -> None:
    data = Data.model_validate({**VOLUMES, "patch": [4, 4, 2], "augment": False})
    image, label = batch_maker(cases(), data, count=3, key=lambda step: (step,), augment=True)(0)
    assert image.shape == label.shape == (3, 1, 4, 4, 2)
    assert label.equal(image.round().to(torch.uint8))


def test_images_are_cropped_at_random_and_flipped_alone_where_nothing_else_is_asked_for() -> None:
    config = {"set": "pneumoniamnist", "size": [6, 6], "patch": [4, 4]}
    only_flip = {"flip": 0.5, "contrast": 0, "brightness": 0, "noise": 0}
    image = torch.arange(36.0).reshape(1, 6, 6)
    case = Case(image, torch.tensor(0))
    data = Data.model_validate({**config, "augment": only_flip})
    batches, _ = batch_maker([case], data, count=300, key=lambda step: (step,), augment=True)(0)
    crops = [image[:, top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
    wanted = {crop.numpy().tobytes() for one in crops for crop in (one, one.flip(2).contiguous())}
    assert {crop.numpy().tobytes() for crop in batches} == wanted

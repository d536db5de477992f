"""The four deformations of Models Genesis, each compared with its published description."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from layertune_monai.genesis import pretext as module
from layertune_monai.genesis.pretext import (
    RandBezierIntensity,
    RandFlipsd,
    RandInPainting,
    RandLocalShuffle,
    RandOutPainting,
    genesis_pretext,
)

SHAPE = (1, 24, 24, 20)


def volume(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_a_pair_holds_the_flipped_target_and_depends_on_the_seed() -> None:
    x = volume()
    first = genesis_pretext().set_random_state(3)({"image": x.clone()})
    second = genesis_pretext().set_random_state(3)({"image": x.clone()})
    third = genesis_pretext().set_random_state(4)({"image": x.clone()})
    assert torch.equal(torch.as_tensor(first["image"]), torch.as_tensor(second["image"]))
    assert not torch.equal(torch.as_tensor(first["image"]), torch.as_tensor(third["image"]))
    assert sorted(first["target"].flatten().tolist()) == sorted(x.flatten().tolist()), "the target is only flipped"
    assert first["image"].shape == first["target"].shape == SHAPE
    assert first["image"].min() >= 0
    assert first["image"].max() <= 1


def test_other_keys_and_a_callers_volume_are_left_alone() -> None:
    x = volume()
    before = x.clone()
    pair = genesis_pretext(image="scan", target="clean").set_random_state(0)({"scan": x, "case": 7})
    assert set(pair) == {"scan", "clean", "case"}
    assert torch.equal(x, before)


def test_each_deformation_has_its_published_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()

    def counting(kind: Any, name: str) -> None:
        plain = kind.randomize

        def randomize(self: Any, *args: Any) -> None:
            plain(self, *args)
            done[name] += bool(self._do_transform)

        monkeypatch.setattr(kind, "randomize", randomize)

    monkeypatch.setattr(RandLocalShuffle, "_transform_holes", lambda _, img: img)
    for kind in (RandLocalShuffle, RandBezierIntensity, RandInPainting, RandOutPainting):
        counting(kind, kind.__name__)
    pretext = genesis_pretext().set_random_state(0)
    pretext.transforms[2].transform.holes = 1  # the windows are not what is counted
    for _ in range(400):
        pretext({"image": torch.zeros(1, 8, 8, 8)})
    expected = {"RandLocalShuffle": 0.5, "RandBezierIntensity": 0.9, "RandInPainting": 0.18, "RandOutPainting": 0.72}
    for name, share in expected.items():
        assert done[name] / 400 == pytest.approx(share, abs=0.06), name


def test_both_volumes_are_flipped_alike_and_each_flip_needs_the_one_before() -> None:
    flips = RandFlipsd(["a", "b"]).set_random_state(0)
    counts: Counter[int] = Counter()
    for _ in range(1000):
        found = flips({"a": volume(1), "b": volume(1)})
        assert torch.equal(found["a"], found["b"])
        counts[len(flips.axes)] += 1
        expected = volume(1)
        for axis in flips.axes:
            expected = expected.flip(axis)
        assert torch.equal(found["a"], expected)
    for number, share in {0: 0.6, 1: 0.24, 2: 0.096, 3: 0.064}.items():
        assert counts[number] / 1000 == pytest.approx(share, abs=0.03)


def test_local_shuffling_moves_voxels_no_further_than_a_window() -> None:
    x = torch.arange(24.0)[None, :, None, None].expand(SHAPE).clone()
    shuffled = RandLocalShuffle(windows=3000, prob=1.0).set_random_state(0)(x.clone())
    moved = (shuffled - x).abs()
    assert moved.max() == 1, "windows are two voxels wide here, and each is read from the volume as it was"
    assert (moved > 0).float().mean() > 0.3
    assert torch.equal(RandLocalShuffle(prob=0.0)(x), x)


def test_a_window_of_one_voxel_changes_nothing() -> None:
    x = torch.rand(1, 9, 9, 9)
    assert torch.equal(torch.as_tensor(RandLocalShuffle(windows=100, prob=1.0)(x.clone())), x)


def bezier(points: list[tuple[float, float]], t: float) -> tuple[float, float]:
    """Return a point of a Bézier curve by de Casteljau's construction."""
    while len(points) > 1:
        points = [((1 - t) * a + t * c, (1 - t) * b + t * d) for (a, b), (c, d) in pairwise(points)]
    return points[0]


@pytest.mark.parametrize("seed", range(20))
def test_intensities_follow_a_bezier_curve(seed: int) -> None:
    transform = RandBezierIntensity(prob=1.0, points=501).set_random_state(seed)
    levels = torch.linspace(0, 1, 50).reshape(1, 50, 1, 1)
    mapped = transform(levels.clone()).flatten()
    random = np.random.RandomState(seed)
    random.rand()  # whether to transform
    drawn = random.random_sample((2, 2))
    points = [(0.0, 0.0), *map(tuple, drawn), (1.0, 1.0)]
    x, y = np.array([bezier(points, t) for t in np.linspace(0, 1, 501)]).T
    turned = random.random_sample() < 0.5
    expected = np.interp(levels.flatten(), np.sort(x), y[::-1] if turned else np.sort(y))
    assert mapped.numpy() == pytest.approx(expected, abs=1e-5)
    assert (mapped[0], mapped[-1]) == pytest.approx((1, 0) if turned else (0, 1), abs=1e-5)
    if not turned:
        assert (mapped.diff() >= 0).all()


def test_half_of_the_curves_invert_the_contrast() -> None:
    transform = RandBezierIntensity(prob=1.0).set_random_state(0)
    levels = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    turned = [bool(transform(levels.clone()).flatten()[0] > 0.5) for _ in range(300)]
    assert 0.4 < sum(turned) / 300 < 0.6


@pytest.mark.parametrize("seed", range(10))
def test_in_painting_fills_boxes_away_from_the_border(seed: int) -> None:
    x = torch.full(SHAPE, 2.0)
    transform = RandInPainting(prob=1.0).set_random_state(seed)
    painted = torch.as_tensor(transform(x.clone()))
    inside = painted != 2
    assert inside.any()
    assert not inside[:, :3].any()
    assert not inside[:, -3:].any()
    assert not inside[..., :3].any()
    assert 1 <= len(transform.hole_coords) <= 5
    for _, *edges in transform.hole_coords:
        for edge, side in zip(edges, SHAPE[1:], strict=True):
            assert side // 6 <= edge.stop - edge.start <= side // 3
    assert ((painted[inside] >= 0) & (painted[inside] <= 1)).all()
    assert painted[inside].std() > 0.2


@pytest.mark.parametrize("seed", range(10))
def test_out_painting_keeps_boxes(seed: int) -> None:
    x = 2 + volume(seed)
    transform = RandOutPainting(prob=1.0).set_random_state(seed)
    painted = torch.as_tensor(transform(x.clone()))
    kept = painted == x
    boxes = torch.zeros(SHAPE, dtype=torch.bool)
    for box in transform.hole_coords:
        boxes[box] = True
    assert torch.equal(kept, boxes)
    assert ((painted[~kept] >= 0) & (painted[~kept] <= 1)).all()
    for _, *edges in transform.hole_coords:
        for edge, side in zip(edges, SHAPE[1:], strict=True):
            assert side - 4 * side // 7 <= edge.stop - edge.start <= side - 3 * side // 7


def test_further_boxes_are_likely_up_to_five() -> None:
    transform = RandInPainting(prob=1.0).set_random_state(0)
    counts: Counter[int] = Counter()
    for _ in range(500):
        transform.randomize(SHAPE[1:])
        counts[len(transform.hole_coords)] += 1
    assert max(counts) == module.MAX_BOXES
    assert counts[5] / 500 == pytest.approx(0.95**4, abs=0.05)


def test_small_volumes_have_smaller_margins() -> None:
    for side in (2, 5, 8):
        x = torch.rand(1, side, side, side)
        for transform in (RandInPainting(prob=1.0), RandOutPainting(prob=1.0)):
            assert transform.set_random_state(0)(x.clone()).shape == x.shape


def test_images_of_two_dimensions_work_too() -> None:
    pair = genesis_pretext().set_random_state(1)({"image": torch.rand(1, 32, 32)})
    assert pair["image"].shape == (1, 32, 32)


@pytest.mark.parametrize("transform", [RandLocalShuffle, RandBezierIntensity, RandInPainting, RandOutPainting])
def test_a_volume_that_is_held_for_the_next_epoch_stays_as_it_was(transform: Any) -> None:
    x = volume(0)
    before = x.clone()
    assert not torch.as_tensor(transform(prob=1.0).set_random_state(0)(x)).equal(before)
    assert x.equal(before)

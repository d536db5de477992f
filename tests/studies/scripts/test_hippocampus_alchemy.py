"""The hippocampus study of Network Alchemy, on a task made here."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from decathlon_task import make_task
from layertune import GammaPenalty, norm_only
from layertune_studies.data.case import Case, batch_of
from layertune_studies.hippocampus_alchemy import CHECKPOINTS, STARTS, run_study
from layertune_studies.hippocampus_alchemy_data import Plan, make_sets
from layertune_studies.hippocampus_alchemy_training import Phases, ends, fit, head_of, phase_grid, pretrain, start
from layertune_studies.training.genesis import deformation

TINY = Plan(
    grid=(16, 16, 16),
    width=1,
    unlabelled=2,
    shots=1,
    held_out=2,
    seeds=2,
    pretrain_steps=8,
    supervised_steps=1,
    steps=2,
    rank_steps=1,
    batch=2,
    lrs=(1e-2, 3e-2),
    norm_lrs=(1e-2,),
    shares=(0.1, 0.3),
    draws=2,
)


def cases(count: int) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, *TINY.grid, generator=generator)
    return [Case(image, (2 * image).round().to(torch.uint8)) for image in images]


def test_the_grid_holds_each_phase_on_and_off_once() -> None:
    grid = phase_grid(1e-4)
    assert grid[0] == Phases()
    assert len({way.name for way in grid}) == len(grid) == 8


def test_a_pretext_batch_is_deformed_and_a_function_of_its_key() -> None:
    image, target = batch_of(cases(3), 2, key=(0,), augment=deformation(TINY.grid))
    assert image.shape == target.shape == (2, 1, *TINY.grid)
    assert not image.equal(target)
    again, _ = batch_of(cases(3), 2, key=(0,), augment=deformation(TINY.grid))
    assert again.equal(image)


def test_pretraining_keeps_an_early_checkpoint() -> None:
    found = pretrain(TINY, cases(2))
    assert len(found["losses"]) == len(found["unrestored"]) == TINY.pretrain_steps
    name = "down_tr64.ops.0.conv1.weight"
    assert not found["early"][name].equal(found["network"][name])


def test_a_start_takes_the_weights_and_a_head_of_the_seed() -> None:
    weights = pretrain(replace(TINY, pretrain_steps=1), cases(2))["network"]
    network, other = (start(TINY, weights, seed=seed) for seed in (0, 1))
    head = head_of(network, TINY)
    assert set(head) == {"out_tr.final_conv.weight", "out_tr.final_conv.bias"}
    for (name, one), two in zip(network.named_parameters(), other.parameters(), strict=True):
        assert one.equal(two) == (name not in head), name


def test_fit_adds_the_penalty_and_trains_what_requires_a_gradient() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    weight = network[0].weight.detach().clone()

    def nothing(output: Tensor, _: Tensor) -> Tensor:
        return 0.0 * output.sum()

    with norm_only(network):
        losses = fit(
            network,
            lambda _: (torch.rand(2, 1, 4, 4, 4), torch.zeros(())),
            steps=2,
            lr=1e-2,
            loss_of=nothing,
            penalty=GammaPenalty(network, weight=1.0),
        )
    assert losses == [0.0, 0.0]
    assert network[0].weight.equal(weight)
    assert (network[1].weight > 1).all(), "the penalty asks for larger gammas"


def test_fit_lowers_the_loss() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 2)
    target = (inputs[:, 0] > 0).long()
    losses = fit(nn.Linear(2, 2), lambda _: (inputs, target), steps=40, lr=0.1, loss_of=cross_entropy)
    first, last = ends(losses)
    assert last < 0.5 * first


@pytest.mark.slow
def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    data, out = make_task(tmp_path / "data", cases=12).parent, tmp_path / "study"
    told: list[str] = []

    def stop(text: str) -> None:
        told.append(text)
        if len(told) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(TINY, data, out, tell=stop)
    done = {path: path.stat().st_mtime_ns for path in (out / "pieces").iterdir()}
    results = run_study(TINY, data, out, tell=told.append)
    assert len(set(told)) == len(told), "nothing is done twice"
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert json.loads((out / "results.json").read_text())["seeds"] == json.loads(json.dumps(results["seeds"]))
    for seed in results["seeds"]:
        assert tuple(seed["full"]) == tuple(seed["norms"]) == CHECKPOINTS
        assert set(seed["ranking"]["metrics"]) == set(CHECKPOINTS)
        assert len(seed["phases"]) == 8
        assert seed["phases"]["i1m1w0.0001"]["redundant"] > 0
        assert seed["phases"][Phases().name] == seed["penalty"]["other"]["0"] == seed["full"]["other"]
        assert all(math.isfinite(seed["full"][name]["dice"]) for name in STARTS)
    tables = (out / "tables.md").read_text()
    assert tables.count("\n## ") == 6
    assert all(f"| {name} |" in tables for name in CHECKPOINTS)
    for name in ("gammas", "after", "clip", "ranks"):
        assert (out / f"hippocampus_alchemy_{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_cases_are_in_one_range_and_the_parts_disjoint(tmp_path: Path) -> None:
    sets = make_sets(TINY, make_task(tmp_path, cases=12).parent)
    parts = [sets.same, *sets.train, sets.validation, sets.test]
    assert [len(part) for part in parts] == [2, 1, 1, 2, 6]
    every = [case for part in parts for case in part]
    assert len({case.image.numpy().tobytes() for case in every}) == len(every)
    assert all(case.image.shape == case.label.shape == (1, *TINY.grid) for case in every)
    assert all(0 <= case.image.min() < case.image.max() <= 1 for case in (*every, *sets.other))
    assert all((case.image + other.image == 1).all() for case, other in zip(sets.same, sets.inverted, strict=True))
    assert {int(value) for case in every for value in case.label.unique()} == {0, 1, 2}

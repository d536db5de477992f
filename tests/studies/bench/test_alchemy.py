"""Alchemy's benchmark measures what it says; how fast things are is not tested here."""

import json
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from layertune_studies.bench import alchemy as module
from layertune_studies.bench.alchemy import bench_alchemy
from layertune_studies.bench.networks import STEP_NETWORKS, StepNetwork


def small_net() -> nn.Module:
    # Without a bias, which a batch norm would leave without a gradient.
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> StepNetwork:
    spec = StepNetwork(
        build=small_net,
        shape=(4, 1, 8, 8),
        target_shape=(4,),
        classes=3,
        optimizer=lambda groups: SGD(groups, momentum=0.9),
        lr=0.01,
    )
    monkeypatch.setitem(STEP_NETWORKS, "small", spec)
    return spec


@pytest.mark.usefixtures("small")
def test_all_keys_and_finite_ratios() -> None:
    found = bench_alchemy("small", repeats=1)
    keys = {"norm_only_ratio", "penalty_ratio", "penalty_step_ratio"}
    assert set(found) - keys == {"plain_ms", "penalty_ms", "gammas", "repeats", "spread"}
    assert all(math.isfinite(found[key]) and found[key] > 0 for key in keys)
    assert found["penalty_ratio"] > 1
    assert found["gammas"] == 4
    assert set(found["spread"]) == {"norm_only", "penalty", "penalty_step"}
    json.dumps(found)


def test_each_contender_does_what_its_name_says(small: StepNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def build() -> nn.Module:
        made.append(small_net())
        return made[-1]

    monkeypatch.setitem(STEP_NETWORKS, "small", StepNetwork(**{**vars(small), "build": build}))
    contenders, _ = module._contenders(STEP_NETWORKS["small"], seed=0)
    frozen, penalised, plain = made
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in before.items())
    for step in contenders.values():
        step()
    changed = {
        net: {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        for net, model in {"frozen": frozen, "penalised": penalised, "plain": plain}.items()
    }
    assert changed["frozen"] == {"1.weight", "1.bias"}
    assert changed["plain"] == changed["penalised"] == set(dict(plain.named_parameters()))
    assert not torch.equal(plain[1].weight, penalised[1].weight)


def test_an_unknown_network() -> None:
    with pytest.raises(KeyError, match="lenet"):
        bench_alchemy("lenet")

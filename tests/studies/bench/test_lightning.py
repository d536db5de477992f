"""The benchmark of Lightning's callback measures what it says; how fast things are is not tested here."""

import json
import math

import pytest
from torch import nn
from torch.optim import SGD

from layertune_studies.bench import lightning as module
from layertune_studies.bench.lightning import LIGHTNING_LIMITS, bench_lightning
from layertune_studies.bench.networks import STEP_NETWORKS, StepNetwork
from layertune_studies.bench.paired import MODES


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = StepNetwork(
        build=lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        shape=(4, 1, 8, 8),
        target_shape=(4,),
        classes=3,
        optimizer=lambda groups: SGD(groups, momentum=0.9),
        lr=0.01,
    )
    monkeypatch.setitem(STEP_NETWORKS, "small", spec)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_all_ratios_are_there_and_finite() -> None:
    found = bench_lightning("small", repeats=2)
    ratios = {f"{name}_ratio" for name in MODES if name != "plain"}
    assert set(LIGHTNING_LIMITS) < ratios
    assert set(found) == {*ratios, "plain_ms", "repeats", "spread"}
    assert all(math.isfinite(found[key]) and found[key] > 0 for key in (*ratios, "plain_ms"))
    assert set(found["spread"]) == set(MODES) - {"plain"}
    json.dumps(found)


def test_a_fit_is_held_against_the_plain_one_of_its_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.1, 1.0, 1.2, 2.0, 4.4, 4.0, 4.8, 8.0])  # the machine is slower in the second
    monkeypatch.setattr(module, "_seconds", lambda *_: next(seconds))
    found = bench_lightning("resnet18", repeats=2)
    ratios = [found[f"{name}_ratio"] for name in ("streaming", "every10", "exact")]
    assert ratios == pytest.approx([1.1, 1.2, 2.0])
    assert found["plain_ms"] == 2500

"""The benchmark of nnU-Net's trainers measures what it says; how fast they are is not tested here."""

import json
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from layertune.cli import app as cli
from layertune.hosts.plugin import Plugin
from layertune_studies.bench import nnunet as bench


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PATCH", (16, 16, 16))
    monkeypatch.setattr(bench, "FEATURES", (2, 4, 4))
    monkeypatch.setattr(bench, "LAPS", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_each_trainer_takes_its_steps_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: dict[str, Any] = {}
    make = bench._trainer

    def kept(name: str, device: str, seed: int) -> Any:
        trainers[name] = make(name, device, seed)
        return trainers[name]

    monkeypatch.setattr(bench, "_trainer", kept)
    before = dict(os.environ)
    result = bench.bench_nnunet(repeats=1)
    assert dict(os.environ) == before
    assert set(result) == {"streaming_ratio", "exact_ratio", "stock_ms", "repeats", "spread"}
    assert all(result[name] > 0 for name in bench.NNUNET_LIMITS)
    for name, trainer in trainers.items():
        steps = {0} if name == "nnUNetTrainer" else {4 - ("Streaming" in name)}
        assert {len(trainer.profile.steps) if hasattr(trainer, "profile") else 0} == steps, name


def test_the_command_shows_ratios_beside_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"streaming_ratio": 1.01, "exact_ratio": 2.02, "stock_ms": 700.0, "repeats": 2, "spread": {}}
    asked: list[dict[str, Any]] = []

    def measured(**options: Any) -> dict[str, Any]:
        asked.append(options)
        return found

    monkeypatch.setattr(bench, "bench_nnunet", measured)
    shown = CliRunner().invoke(cli.app, ["bench", "nnunet", "--repeats", "3"]).stdout
    assert all(text in shown for text in ("700 ms", "2.020", "2.150", "1.010", "1.080"))
    assert json.loads(CliRunner().invoke(cli.app, ["bench", "nnunet", "--json"]).stdout) == found
    assert asked == [{"repeats": 3, "device": "cpu"}, {"repeats": 2, "device": "cpu"}]


def test_a_missing_nnunet_is_answered_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Plugin(name="nnU-Net", distribution="no-such-thing", lowest="2.8", module="nnunetv2", extra="nnunet")
    monkeypatch.setattr(bench, "PLUGIN", absent)
    result = CliRunner().invoke(cli.app, ["bench", "nnunet"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'layertune[nnunet]'" in result.stderr

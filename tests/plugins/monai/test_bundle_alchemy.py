"""Network Alchemy by the bundle's switches: which weights train, resuming, and the Python workflow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import run_workflow

from bundle_runs import SMALL, run_config, saved_state
from layertune_monai.bundle.folder import write_bundle

pytestmark = [
    pytest.mark.slow,
    # MONAI warns about every configuration that it runs.
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
]

PHASES: dict[str, Any] = {"epochs": 3, "identification": 1, "quantile": 0.25, "whole_layers": True}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])
    assert one["alchemy"]["phase"] == other["alchemy"]["phase"]


def factors(state: dict[str, Any]) -> set[float]:
    return {float(group.get("meta_scale", 1.0)) for group in state["optimizer"]["param_groups"]}


@pytest.mark.parametrize("train_head", [False, True])
def test_norm_only_trains_the_norms_and_the_head_if_asked(bundle: Path, data: Path, train_head: bool) -> None:
    run_config(bundle, data, method="all", epochs=1)
    before = saved_state(bundle, 1)["network"]
    torch.save(before, bundle / "start.pt")
    run_config(bundle, data, method="norm_only", epochs=1, pretrained=str(bundle / "start.pt"), train_head=train_head)
    after = saved_state(bundle, 1)["network"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in moved if "running" not in name and "num_batches" not in name}
    norms = {name for name in before if ".adn.N." in name and name.endswith(("weight", "bias"))}
    assert len(norms) == 12
    assert trained == norms | ({"model.2.conv.weight", "model.2.conv.bias"} if train_head else set())


def test_bnscale_makes_the_gammas_larger(bundle: Path, data: Path) -> None:
    ends = {}
    for name, options in {"all": {}, "off": {"method": "bnscale", "penalty": 0.0}, "on": {"penalty": 50.0}}.items():
        run_config(bundle, data, **{"method": "all" if name == "all" else "bnscale", "epochs": 1, **options})
        ends[name] = saved_state(bundle, 1)["network"]
    assert all(torch.equal(ends["all"][name], ends["off"][name]) for name in ends["all"])
    mean = {name: torch.cat([end[key] for key in end if key.endswith("N.weight")]).mean() for name, end in ends.items()}
    assert mean["on"] > mean["all"] + 0.02


def test_a_resumed_run_in_phases_ends_like_an_uninterrupted_one(bundle: Path, data: Path, tmp_path: Path) -> None:
    """Rates are learned in the maximisation. The first run ends after one epoch, in the identification."""
    options = {"method": "alchemy_metalr", "hyper_lr": 0.1, **PHASES, "lr_scheduler#epochs": 3}
    run_config(bundle, data, **options)
    end = saved_state(bundle, 3)
    assert end["alchemy"]["phase"] == "maximisation"
    assert len(end["alchemy"]["history"]) == 3
    assert factors(end) != {1.0}, "a rate was learned"
    other = write_bundle(tmp_path / "other")
    run_config(other, data, **options, **{"train#trainer#max_epochs": 1})
    assert factors(saved_state(other, 1)) == {1.0}
    run_config(other, data, **options, resume=True)
    assert_same(end, saved_state(other, 3))


def test_the_python_workflow_has_the_phases_too(bundle: Path, data: Path, tmp_path: Path) -> None:
    run_config(bundle, data, method="alchemy", **PHASES, train_head=True)
    other = write_bundle(tmp_path / "other")
    options = {**SMALL, "method": "alchemy", **PHASES, "train_head": True, "logging_file": False}
    run_workflow("layertune_monai.Training", bundle_root=str(other), data_dir=str(data), **options)
    assert_same(saved_state(bundle, 3), saved_state(other, 3))

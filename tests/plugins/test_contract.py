"""One contract for the plug-ins of all hosts."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from host_contract import SETTINGS, Host, left_behind, numbers_in_source, weights
from host_runs import HOSTS
from host_toy import RATE, rates_by_hand
from layertune import AlchemyError, MetaLRSettings, OptimizerError, Plugin, plugins
from layertune.alchemy.convergence import DEFAULT_IDENTIFICATION
from layertune.hosts.alchemy_settings import AlchemySettings
from layertune.hosts.plugin import GROUP

each_host = pytest.mark.parametrize("host", [pytest.param(host, id=host.package) for host in HOSTS])
# nnU-Net's unit is a training from its folders to a checkpoint.
each_host_in_training = pytest.mark.parametrize(
    "host",
    [
        pytest.param(host, id=host.package, marks=[pytest.mark.slow] if host.package == "layertune_nnunet" else [])
        for host in HOSTS
    ],
)


@pytest.fixture(autouse=True)
def installed(host: Host) -> None:
    """Require the host that a test is about."""
    (row,) = (row for row in plugins() if row.plugin == plugin_of(host))
    assert row.usable, row.reason


def plugin_of(host: Host) -> Plugin:
    return importlib.import_module(host.package).PLUGIN


@each_host
def test_it_describes_itself_in_full(host: Host) -> None:
    module, plugin = importlib.import_module(host.package), plugin_of(host)
    assert module.__doc__
    assert "PLUGIN" in module.__all__
    assert all((plugin.name, plugin.distribution, plugin.lowest, plugin.module, plugin.extra))
    extras = importlib.metadata.metadata(plugin.provider).get_all("Provides-Extra") or []
    assert plugin.extra in extras
    required = importlib.metadata.requires(plugin.provider) or []
    assert any(line.startswith(f"{plugin.distribution}>={plugin.lowest}") for line in required)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = module.nonsense


@each_host
def test_its_public_names_are_there(host: Host) -> None:
    module = importlib.import_module(host.package)
    assert all(getattr(module, name).__doc__ for name in module.__all__)


@each_host
def test_its_entry_point_is_found(host: Host) -> None:
    entries = importlib.metadata.entry_points(group=GROUP)
    assert plugin_of(host) in [entry.load() for entry in entries if entry.value == f"{host.package}:PLUGIN"]


@pytest.mark.slow
@each_host
def test_it_imports_without_its_host(host: Host) -> None:
    module = plugin_of(host).module
    code = f"import sys; sys.modules[{module!r}] = None; import {host.package} as p; print(p.PLUGIN.install_line)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == plugin_of(host).install_line


@pytest.mark.parametrize("streaming", [None, True], ids=["meta batches", "streaming"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": "cosine"},
        {"rule": "joint", "every": 2},
        {"rule": "proportional", "hyper_lr": 0.3, "max_lr": 1.02 * RATE},
        {"rule": "additive", "hyper_lr": 0.01, "max_change": 1.01, "min_lr": 0.99 * RATE},
    ],
    ids=lambda settings: settings.get("rule", "defaults"),
)
@each_host
def test_the_same_settings_give_the_same_rates(
    host: Host, settings: dict[str, Any], streaming: bool | None, tmp_path: Path
) -> None:
    expected = rates_by_hand(host.preset, streaming=streaming, **settings)
    # Where groups are layers, factors are applied before a step and not after it: equal but for rounding.
    assert host.learn(tmp_path, streaming=streaming, **settings) == pytest.approx(expected, rel=1e-5)
    rule = MetaLRSettings.given(preset=host.preset, **settings).rule
    assert (len(set(expected)) > 1) is (rule != "free"), "the rule free learns one factor for all layers"
    assert all(rate != RATE for rate in expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "magic"},
        {"rule": "additive"},
        {"hyper_lr": -1.0},
        {"hyper_lr": float("inf")},
        {"min_lr": -1e-6},
        {"min_lr": 0.1, "max_lr": 0.01},
        {"max_change": 1.0},
        {"every": 0},
        {"every": 1.5},
        {"streaming": "yes"},
    ],
    ids=lambda settings: " ".join(f"{name} {value}" for name, value in settings.items()),
)
@each_host
def test_wrong_settings_give_one_error_when_they_are_given(
    host: Host, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(OptimizerError) as expected:
        MetaLRSettings.given(preset=host.preset, **settings)
    with pytest.raises(OptimizerError) as raised:
        host.make(tmp_path, **settings)
    assert type(raised.value) is type(expected.value)
    # nnU-Net adds how a trainer's name gives these settings.
    assert str(raised.value).partition("; in a trainer's name:")[0] == str(expected.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.0},
        {"quantile": 1.5},
        {"threshold": 0.1, "quantile": 0.1},
        {"alpha": float("nan")},
        {"beta": -1.0},
    ],
    ids=lambda settings: " ".join(f"{name} {value}" for name, value in settings.items()),
)
@pytest.mark.parametrize("host", [pytest.param(host, id=host.package) for host in HOSTS if host.has_alchemy])
def test_wrong_settings_of_alchemy_give_one_error_when_they_are_given(
    host: Host, settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(AlchemyError) as expected:
        AlchemySettings.given(**settings)
    with pytest.raises(AlchemyError) as raised:
        host.make_alchemy(tmp_path, **settings)
    assert str(raised.value).partition("; in a trainer's name:")[0] == str(expected.value)


@each_host
def test_it_names_no_number_of_its_own(host: Host) -> None:
    assert numbers_in_source(host.package) == []
    module = importlib.import_module(host.package)
    for public in (getattr(module, name) for name in module.__all__ if inspect.isclass(getattr(module, name))):
        defaults = {name: of.default for name, of in inspect.signature(public).parameters.items()}
        defaults |= {name: value for base in public.__mro__ for name, value in vars(base).items() if name in SETTINGS}
        given = {name: value for name, value in defaults.items() if name in SETTINGS and value is not None}
        numbers = {name: value for name, value in given.items() if type(value) in (int, float)}
        assert numbers == {}, public
        assert given.get("identification") in (None, DEFAULT_IDENTIFICATION), public


@each_host_in_training
def test_a_hyper_lr_of_0_gives_the_hosts_own_run_bit_for_bit(host: Host, tmp_path: Path) -> None:
    with_it, without = host.train(tmp_path, hyper_lr=0.0), host.train(tmp_path, hyper_lr=None)
    torch.testing.assert_close(weights(with_it.model), weights(without.model), rtol=0, atol=0)
    moved = host.train(tmp_path, hyper_lr=0.1)
    assert any(not torch.equal(a, b) for a, b in zip(weights(moved.model), weights(without.model), strict=True))


@each_host_in_training
def test_a_run_resumes_bit_for_bit(host: Host, tmp_path: Path) -> None:
    whole = host.train(tmp_path, hyper_lr=0.1)
    host.train(tmp_path, hyper_lr=0.1, last=2)
    resumed = host.train(tmp_path, hyper_lr=0.1, first=2)
    assert resumed.lrs == whole.lrs
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    assert whole.lrs != host.train(tmp_path, hyper_lr=0.0).lrs


@each_host_in_training
def test_nothing_is_left_behind(host: Host, tmp_path: Path) -> None:
    end = host.train(tmp_path, hyper_lr=0.1)
    assert not left_behind(end)
    assert set(vars(end.model)) == set(vars(host.train(tmp_path, hyper_lr=None).model))

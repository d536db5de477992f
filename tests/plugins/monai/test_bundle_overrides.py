"""Overrides of a configuration, in an adapted bundle: those that nothing reads are errors, all others are accepted."""

from pathlib import Path
from typing import Any

import pytest
from monai.bundle import create_workflow

from bundle_examples import STATS, STYLES, write_bundle
from bundle_runs import adapted_workflow, own_error
from layertune import LayertuneError
from layertune_monai import check_overrides
from layertune_monai.bundle.adapt import adapt
from layertune_monai.bundle.methods import Method

# MONAI warns about every configuration that it runs.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layertune#metod": "last"}, "layertune has no switch metod; its switches are method, depth, m, n, first"),
        ({"metod": "last"}, r"reads metod; did you mean layertune#method\? Known names: bundle_root"),
        ({"method": "last"}, r"reads method; did you mean layertune#method\?"),
        ({"layertune#method": "magic"}, "method is one of metalr, .* not 'magic'"),
        ({"layertune#m": 2}, "m=2 belongs to the method 'bidirectional', not to 'metalr'"),
        ({"layertune#depth": "I2"}, "depth=I2 belongs to the method bidirectional or layer_wise or last"),
        (
            {"layertune#method": "last", "layertune#rule": "cosine"},
            "rule=cosine .* not to 'last_layer'.* again",
        ),
        ({"train#trainer#train_handlers": "@train#handlers"}, "does not use the handlers @layertune any more"),
        ({"train#extra": {"size": [1, 2]}}, "nothing in this configuration reads train#extra; Known names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_switch_without_effect_is_an_error(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    adapt(bundle, Method(method="metalr"))
    with pytest.raises(RuntimeError) as caught:
        adapted_workflow(bundle, **overrides).run()
    with pytest.raises(LayertuneError, match=message):
        raise own_error(caught.value)
    assert not list(bundle.glob("models/layertune/*")), "nothing was trained"


@pytest.mark.parametrize(
    "overrides",
    [
        {"optimizer#lr": 0.1, "train#trainer#max_epochs": 1},
        {"own": 0.02, "optimizer#lr": "@own"},
        {"own": {"lr": 0.02}, "optimizer#lr": "$@own#lr / 2"},
        {"own": {"_target_": "builtins.print"}},
        {"own": "$print('a')"},
        {"dataset_dir": "elsewhere"},
    ],
    ids=" ".join,
)
def test_overrides_with_an_effect_are_accepted(overrides: dict[str, Any], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    adapt(bundle, Method(method="metalr"))
    assert adapted_workflow(bundle, **overrides).trainer


def test_a_bundle_without_a_root_is_checked_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle", "inline")
    adapt(bundle, Method(method="metalr"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    files = [str(bundle / "configs" / name) for name in ("train.yml", "layertune.json")]
    with pytest.raises(RuntimeError) as caught:
        create_workflow(config_file=files, logging_file=False)
    assert "there is no configuration of a bundle in" in str(own_error(caught.value))
    monkeypatch.chdir(bundle)
    assert create_workflow(config_file=files, logging_file=False).trainer


@pytest.mark.parametrize(("style", "fits"), [("zoo", True), ("inline", False)])
def test_tracking_keeps_the_method_or_is_refused(
    style: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI appends its handler to `train#handlers`. Without that list it replaces the handlers of the trainer."""
    bundle = write_bundle(tmp_path / "bundle", style)
    adapt(bundle, Method(method="metalr"))
    monkeypatch.chdir(bundle)
    settings = {
        "handlers_id": {"trainer": {"id": "train#trainer", "handlers": "train#handlers"}},
        "configs": {"save_execute_config": False, "trainer": STATS},
    }
    files = [f"configs/train.{STYLES[style][1]}", "configs/layertune.json"]
    if not fits:
        with pytest.raises(RuntimeError) as caught:
            create_workflow(config_file=files, logging_file=False, tracking=settings)
        assert "does not use the handlers @layertune any more" in str(own_error(caught.value))
        return
    workflow = create_workflow(config_file=files, logging_file=False, tracking=settings)
    handlers = [type(handler).__name__ for handler in workflow.parser.get_parsed_content("layertune")]
    assert handlers == ["MetaLRHandler", "StatsHandler", "CheckpointSaver", "StatsHandler"]


def test_a_call_from_python_checks_nothing() -> None:
    assert check_overrides("nowhere") is None

"""`layertune monai adapt`: fine-tuning bundles that other people have written, in three common styles."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from typer.testing import CliRunner

from bundle_examples import NETWORK, STYLES, trainer, write_bundle
from bundle_runs import adapted_workflow
from layertune import LayertuneError, LRProfile
from layertune.cli.app import app
from layertune_monai.bundle.adapt import adapt
from layertune_monai.bundle.folder import write_bundle as write_own_bundle
from layertune_monai.bundle.methods import Method
from layertune_monai.bundle.train_config import read_train_config
from layertune_monai.errors import BundleError

# MONAI warns about every configuration that it runs.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


def digests(bundle: Path) -> dict[str, str]:
    paths = [path for path in bundle.rglob("*") if path.is_file()]
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def run_bundle(bundle: Path, files: str, *overrides: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", files, *overrides]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def moved_weights(bundle: Path) -> tuple[set[str], set[str]]:
    """The names of all weights, and of those that a training has changed."""
    start, end = (
        torch.load(bundle / "models" / name, weights_only=True) for name in ("model.pt", "layertune/model.pt")
    )
    names = {name for name in start if "num_batches" not in name}
    return names, {name for name in names if not torch.equal(start[name], end[name])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("style", "method"), [("zoo", "metalr"), ("flat", "metalr_streaming"), ("inline", "bidirectional")]
)
def test_a_bundle_is_fine_tuned_by_monais_own_command(style: str, method: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", style)
    before = digests(bundle)
    written = CliRunner().invoke(app, ["monai", "adapt", str(bundle), "--method", method, "--json"])
    assert written.exit_code == 0, written.output
    (files,) = json.loads(written.output)["config_files"]
    overrides = [] if method == "bidirectional" else ["--layertune#hyper_lr", "0.05"]
    output = run_bundle(bundle, files, *overrides)
    after = digests(bundle)
    assert {name: after[name] for name in before} == before, "no file of the bundle has changed, nor its weights"
    assert "tensors loaded" in output
    names, moved = moved_weights(bundle)
    if method == "bidirectional":
        assert set() < moved < names
    else:
        assert moved == names
        profile = LRProfile.load(bundle / "eval" / "layertune" / "learned_rates.json")
        assert len(profile.layers) > 1
        assert len(set(profile.lrs[-1])) == 1, "the rule free learns one factor for all layers"
        assert all(f"lr/{layer}" in output for layer in profile.layers)


@pytest.mark.slow
def test_a_hyper_lr_of_0_trains_the_bundle_as_it_is(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    ends = []
    for method in (Method(method="all"), Method(method="metalr", hyper_lr=0.0)):
        (files,) = adapt(bundle, method).config_files
        run_bundle(bundle, files)
        ends.append(torch.load(bundle / "models" / "layertune" / "model.pt", weights_only=True))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@pytest.mark.slow
def test_the_method_can_be_changed_by_its_switch(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    adapt(bundle, Method(method="metalr"))
    adapted_workflow(bundle, **{"layertune#method": "last"}).run()
    names, moved = moved_weights(bundle)
    trained = {name for name in moved if "running" not in name}
    assert trained
    assert all(name.startswith("model.2.") for name in trained)
    assert any(not name.startswith("model.2.") for name in names)


@pytest.mark.parametrize("style", STYLES)
def test_the_handler_comes_before_the_trainers_own(style: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", style)
    done = adapt(bundle, Method())
    suffix = STYLES[style][1]
    assert done.config_files == (f"['configs/train.{suffix}','configs/layertune.json']",)
    merged = ConfigParser.load_config_files([bundle / "configs" / f"train.{suffix}", bundle / "configs/layertune.json"])
    engine = merged["engine"] if style == "flat" else merged["train"]["trainer"]
    assert engine["train_handlers"] == "@layertune"
    place = "engine" if style == "flat" else "train#trainer"
    assert merged["layertune"]["optimizer"] == f"@{place}#optimizer"
    monai_root = {} if style == "inline" else {"bundle_root": str(bundle)}
    parser = ConfigParser({**merged, **monai_root, "layertune": {**merged["layertune"], "weights": None}})
    handlers = parser.get_parsed_content("layertune")
    assert [type(handler).__name__ for handler in handlers] == ["MetaLRHandler", "StatsHandler", "CheckpointSaver"]
    assert handlers[2].save_dir.endswith("models/layertune")


def test_one_of_several_networks_in_the_file_is_chosen_by_a_switch(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    adapt(bundle, Method())
    weights = torch.load(bundle / "models/model.pt", weights_only=True)
    copies = {"student": {name: tensor + 1 for name, tensor in weights.items()}, "teacher": weights}
    torch.save(copies, bundle / "models/copies.pt")
    overrides = {"layertune#weights": str(bundle / "models/copies.pt"), "layertune#prefix": "teacher"}
    network = adapted_workflow(bundle, **overrides).network_def
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_all_that_saves_checkpoints_saves_elsewhere(tmp_path: Path) -> None:
    best = {
        "_target_": "layertune_monai.BestModelSaver",  # a class that derives from MONAI's, with another name
        "save_dir": "@ckpt_dir",
        "save_dict": {"model": "@network"},
    }
    bundle = write_bundle(tmp_path / "bundle", "zoo", validate={"handlers": [best]})
    adapt(bundle, Method(method="all"))
    found = read_train_config(bundle, ["configs/train.json", "configs/layertune.json"], None)
    savers = found.savers()
    assert len(savers) == 2
    assert all("models/layertune" in str(found.parser.get(f"{place}::save_dir")) for place in savers)


def test_a_bundle_that_learns_already_is_left_as_it_is(tmp_path: Path) -> None:
    bundle = write_own_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"has a handler of layertune already, at train#handlers#0, .* by --method"):
        adapt(bundle, Method())
    assert not (bundle / "configs/layertune.json").exists()


def test_the_defaults_are_those_of_our_own_bundle(tmp_path: Path) -> None:
    own = json.loads((write_own_bundle(tmp_path / "own") / "configs/train.json").read_text())
    assert (Method().hyper_lr, Method().rule, Method().every) == (own["hyper_lr"], own["rule"], own["every"])
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    assert CliRunner().invoke(app, ["monai", "adapt", str(bundle)]).exit_code == 0
    written = json.loads((bundle / "configs/layertune.json").read_text())["layertune"]
    assert {name: written[name] for name in Method().settings()} == Method().settings()


def test_several_processes_have_a_configuration_of_their_own(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    multi = {"train#trainer#train_handlers": "$@train#handlers[: -1 if dist.get_rank() > 0 else None]"}
    (bundle / "configs/multi_gpu_train.json").write_text(json.dumps(multi))
    done = adapt(bundle, Method(method="metalr_streaming"))
    assert done.files == ("configs/layertune.json", "configs/layertune_multi_gpu.json")
    written = json.loads((bundle / done.files[1]).read_text())
    assert written["train#trainer#train_handlers"] == "@layertune"
    assert written["layertune"]["handlers"] == multi["train#trainer#train_handlers"]
    assert done.config_files[1].startswith("['configs/train.json','configs/multi_gpu_train.json',")


def test_a_configuration_for_several_processes_that_cannot_be_combined_is_noted(tmp_path: Path) -> None:
    """It overrides a trainer at `train#trainer`, where the other configuration has its own at `engine`."""
    bundle = write_bundle(tmp_path / "bundle", "flat")
    (bundle / "configs/multi_gpu_train.json").write_text(json.dumps({"train#trainer#max_epochs": 3}))
    done = adapt(bundle, Method())
    assert done.files == ("configs/layertune.json",)
    assert "Nothing is written for several GPUs: configs/multi_gpu_train.json cannot be combined" in done.notes[-1]


@pytest.mark.parametrize(
    ("before", "expected"),
    [(["$print('a')"], ("+initialize", 0)), ("$print('a')", ("initialize", 1)), (None, ("initialize", 0))],
    ids=["list", "expression", "none"],
)
def test_the_bundles_own_first_steps_stay(before: Any, expected: tuple[str, int], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo", initialize=before)
    adapt(bundle, Method())
    key, own_steps = expected
    steps = json.loads((bundle / "configs/layertune.json").read_text())[key]
    assert steps[:own_steps] == [before] * own_steps
    assert [step["_target_"] for step in steps[own_steps:]] == [
        "layertune_monai.check_overrides",
        "layertune_monai.load_pretrained",
    ]


def test_it_may_be_written_again_and_weights_may_be_elsewhere(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    adapt(bundle, Method())
    elsewhere = (bundle / "models/model.pt").rename(tmp_path / "other.pt")
    assert "There is no models/model.pt" in adapt(bundle, Method(method="last")).notes[0]
    assert "load_pretrained" not in (bundle / "configs/layertune.json").read_text()
    adapt(bundle, Method(), weights=elsewhere)
    written = json.loads((bundle / "configs/layertune.json").read_text())
    assert written["layertune"]["weights"] == str(elsewhere)


ENGINES = {name: {"_target_": f"my.{name}Trainer"} for name in ("Gan", "Other")}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        pytest.param({"train": None}, [], "has no trainer at train#trainer, .* ends in Trainer: none; name", id="none"),
        pytest.param({"train": {"engines": ENGINES}}, [], "engines#Gan, train#engines#Other; name", id="several"),
        pytest.param({"train": {"trainer": trainer(network=1)}}, [], "has no optimizer; layertune fits", id="bare"),
        pytest.param({}, ["--trainer", "train#engine"], "has no component at train#engine", id="wrong id"),
        pytest.param({"ckpt_dir": "$@bundle_root + '/../models'"}, [], "ckpt_dir is .* leaves the bundle", id="path"),
        pytest.param({"network_def": "%../other.json#net"}, [], "network_def is .* leaves the bundle", id="macro"),
        pytest.param({}, ["--config", "../train.json"], "../train.json leaves the bundle", id="config outside"),
        pytest.param({}, ["--config", "configs/no.json"], "has no file configs/no.json", id="no config"),
        pytest.param({}, ["--weights", "no.pt"], "there is no file of weights at no.pt", id="no weights"),
        pytest.param({}, ["--method", "magic"], "method is one of metalr", id="method"),
        pytest.param({}, ["--method", "alchemy"], "method is one of metalr, .* not 'alchemy'", id="alchemy"),
        pytest.param({}, ["--method", "last", "--depth", "I3"], r"depth is I1 \(order of execution\)", id="depth"),
        pytest.param({}, ["--depth", "I2"], "depth=I2 belongs to the method bidirectional", id="depth of metalr"),
        pytest.param({}, ["--method", "last", "--every", "2"], "every=2 belongs to the method metalr", id="every"),
        pytest.param({}, ["--hyper-lr", "-1"], "hyper_lr must be finite and >= 0", id="hyper_lr"),
    ],
)
def test_a_mistake_is_answered_by_one_clear_line(
    changes: dict[str, Any], options: list[str], message: str, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo", **changes)
    done = CliRunner().invoke(app, ["monai", "adapt", str(bundle), *options])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("layertune: ")
    with pytest.raises(LayertuneError, match=message):
        raise LayertuneError(line)
    assert not (bundle / "configs/layertune.json").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "is no folder; give the root of a bundle"),
        (lambda bundle: bundle.mkdir(), "has no folder 'configs'"),
        (lambda bundle: (bundle / "configs").mkdir(parents=True), "has no configs/train.json or .yaml"),
        (lambda bundle: write_train_file(bundle, "{"), "configs/train.json cannot be read"),
        (lambda bundle: write_train_file(bundle, "[]"), "should hold a mapping of names to settings, and holds list"),
    ],
    ids=["missing", "empty", "no train", "broken", "list"],
)
def test_a_folder_that_is_no_bundle_is_one_clear_error(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "bundle")
    with pytest.raises(LayertuneError, match=message):
        adapt(tmp_path / "bundle", Method())


def write_train_file(bundle: Path, text: str) -> None:
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs/train.json").write_text(text)


def test_a_file_of_that_name_that_layertune_has_not_written_is_left_alone(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    (bundle / "configs/layertune.json").write_text(json.dumps({"network": NETWORK}))
    with pytest.raises(LayertuneError, match="exists already and was not written by layertune; rename it first"):
        adapt(bundle, Method())

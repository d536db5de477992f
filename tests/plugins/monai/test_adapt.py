"""`layertune monai adapt`: fine-tuning bundles in other people's manners."""

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

from bundle_examples import MANNERS, NETWORK, trainer, write_bundle
from layertune import LayertuneError, LRProfile
from layertune.cli.app import app
from layertune_monai.bundle.adapt import Method, adapt
from layertune_monai.bundle.folder import write_bundle as write_own_bundle
from layertune_monai.bundle.train_config import read_train_config
from layertune_monai.errors import BundleError


def files_of(bundle: Path) -> dict[str, str]:
    paths = [path for path in bundle.rglob("*") if path.is_file()]
    return {str(path.relative_to(bundle)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def run_bundle(bundle: Path, files: str, *overrides: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", files, *overrides]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("manner", "method"), [("zoo", "metalr"), ("flat", "metalr_streaming"), ("inline", "bidirectional")]
)
def test_a_bundle_is_fine_tuned_by_monais_own_command(manner: str, method: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", manner)
    before = files_of(bundle)
    told = CliRunner().invoke(app, ["monai", "adapt", str(bundle), "--method", method, "--json"])
    assert told.exit_code == 0, told.output
    (files,) = json.loads(told.output)["config_files"]
    overrides = [] if method == "bidirectional" else ["--layertune#hyper_lr", "0.05"]
    said = run_bundle(bundle, files, *overrides)
    after = files_of(bundle)
    assert {name: after[name] for name in before} == before  # nothing of theirs changed, their weights neither
    assert "tensors loaded" in said
    start, end = (
        torch.load(bundle / "models" / name, weights_only=True) for name in ("model.pt", "layertune/model.pt")
    )
    moved = {name for name in start if "num_batches" not in name and not torch.equal(start[name], end[name])}
    if method == "bidirectional":
        assert 0 < len(moved) < len(start)
    else:
        assert len(moved) == len(start)
        profile = LRProfile.load(bundle / "eval" / "layertune" / "learned_rates.json")
        assert len(set(profile.lrs[-1])) == len(profile.layers) > 1
        assert all(f"lr/{layer}" in said for layer in profile.layers)


@pytest.mark.slow
def test_a_hyper_lr_of_0_trains_the_bundle_as_it_is(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    ends = []
    for method in (Method(name="all"), Method(name="metalr", hyper_lr=0.0)):
        (files,) = adapt(bundle, method).config_files
        run_bundle(bundle, files)
        ends.append(torch.load(bundle / "models" / "layertune" / "model.pt", weights_only=True))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@pytest.mark.parametrize("manner", MANNERS)
def test_the_handler_comes_before_theirs(manner: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", manner)
    done = adapt(bundle, Method())
    suffix = MANNERS[manner][1]
    assert done.config_files == (f"['configs/train.{suffix}','configs/layertune.json']",)
    merged = ConfigParser.load_config_files([bundle / "configs" / f"train.{suffix}", bundle / "configs/layertune.json"])
    engine = merged["engine"] if manner == "flat" else merged["train"]["trainer"]
    expected = {
        "zoo": "$@layertune#handlers + list((@train#handlers) or [])",
        "flat": "$@layertune#handlers + list((@handlers + @saving) or [])",
        "inline": "$@layertune#handlers + @layertune#theirs",
    }
    assert engine["train_handlers"] == expected[manner]
    place = "engine" if manner == "flat" else "train#trainer"
    assert merged["layertune"]["handlers"][0]["optimizer"] == f"@{place}#optimizer"


def test_everything_that_saves_checkpoints_leaves_the_bundles_weights_alone(tmp_path: Path) -> None:
    best = {
        "_target_": "layertune_monai.bundle.checkpoints.BestModelSaver",  # a child of MONAI's, by another name
        "save_dir": "@ckpt_dir",
        "save_dict": {"model": "@network"},
    }
    bundle = write_bundle(tmp_path / "bundle", "zoo", validate={"handlers": [best]})
    adapt(bundle, Method(name="all"))
    found = read_train_config(bundle, ["configs/train.json", "configs/layertune.json"], None)
    savers = found.savers()
    assert len(savers) == 2
    assert all("models/layertune" in str(found.parser.get(f"{place}::save_dir")) for place in savers)


def test_a_bundle_that_learns_already_is_left_as_it_is(tmp_path: Path) -> None:
    bundle = write_own_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"has a handler of layertune's already, at train#handlers#0, .* by --method"):
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
    done = adapt(bundle, Method(name="metalr_streaming"))
    assert done.files == ("configs/layertune.json", "configs/layertune_multi_gpu.json")
    written = json.loads((bundle / done.files[1]).read_text())
    assert written["train#trainer#train_handlers"] == (
        "$@layertune#handlers + list((@train#handlers[: -1 if dist.get_rank() > 0 else None]) or [])"
    )
    assert done.config_files[1].startswith("['configs/train.json','configs/multi_gpu_train.json',")


def test_a_configuration_for_several_processes_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """Here it overrides a trainer at `train#trainer`, where the other has its own at `engine`."""
    bundle = write_bundle(tmp_path / "bundle", "flat")
    (bundle / "configs/multi_gpu_train.json").write_text(json.dumps({"train#trainer#max_epochs": 3}))
    done = adapt(bundle, Method())
    assert done.files == ("configs/layertune.json",)
    assert "Nothing is written for several GPUs: configs/multi_gpu_train.json does not go with" in done.notes[-1]


def test_it_may_be_written_again_and_weights_may_lie_elsewhere(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    adapt(bundle, Method())
    elsewhere = (bundle / "models/model.pt").rename(tmp_path / "other.pt")
    assert "There is no models/model.pt" in adapt(bundle, Method(name="last")).notes[0]
    assert "initialize" not in (bundle / "configs/layertune.json").read_text()
    adapt(bundle, Method(), weights=elsewhere)
    written = json.loads((bundle / "configs/layertune.json").read_text())
    assert written["layertune"]["weights"] == str(elsewhere)


ENGINES = {name: {"_target_": f"my.{name}Trainer"} for name in ("Gan", "Other")}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        pytest.param({"train": None}, [], "has no trainer at train#trainer, .* ends in Trainer: none; tell", id="none"),
        pytest.param({"train": {"engines": ENGINES}}, [], "engines#Gan, train#engines#Other; tell", id="several"),
        pytest.param({"train": {"trainer": trainer(network=1)}}, [], "has no optimizer; layertune fits", id="bare"),
        pytest.param({}, ["--trainer", "train#engine"], "has no component at train#engine", id="wrong id"),
        pytest.param({"ckpt_dir": "$@bundle_root + '/../models'"}, [], "ckpt_dir is .* leaves the bundle", id="path"),
        pytest.param({"network_def": "%../other.json#net"}, [], "network_def is .* leaves the bundle", id="macro"),
        pytest.param({}, ["--config", "../train.json"], "../train.json leaves the bundle", id="config outside"),
        pytest.param({}, ["--config", "configs/no.json"], "has no file configs/no.json", id="no config"),
        pytest.param({}, ["--weights", "no.pt"], "there is no file of weights at no.pt", id="no weights"),
        pytest.param({}, ["--method", "magic"], "method is one of metalr", id="method"),
        pytest.param({}, ["--method", "alchemy"], "method is one of metalr, .* not 'alchemy'", id="alchemy"),
        pytest.param({}, ["--depth", "I3"], r"depth is I1 \(order of execution\) or I2", id="depth"),
        pytest.param({}, ["--hyper-lr", "-1"], "hyper_lr must be finite and >= 0", id="hyper_lr"),
    ],
)
def test_what_will_not_do_is_one_clear_line(
    changes: dict[str, Any], options: list[str], message: str, tmp_path
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
        (lambda bundle: broken(bundle, "{"), "configs/train.json cannot be read"),
        (lambda bundle: broken(bundle, "[]"), "should hold a mapping of names to settings, and holds list"),
    ],
    ids=["missing", "empty", "no train", "broken", "list"],
)
def test_a_folder_that_is_no_bundle_is_one_clear_error(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "bundle")
    with pytest.raises(LayertuneError, match=message):
        adapt(tmp_path / "bundle", Method())


def broken(bundle: Path, text: str) -> None:
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs/train.json").write_text(text)


def test_a_file_of_that_name_that_is_not_layertunes_is_left_alone(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "zoo")
    (bundle / "configs/layertune.json").write_text(json.dumps({"network": NETWORK}))
    with pytest.raises(LayertuneError, match="is there already and not layertune's; rename it first"):
        adapt(bundle, Method())

"""What version 0.1 of the plug-in left on users' disks: its bundle, adaptations of other bundles, and a checkpoint."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from monai.bundle import ConfigComponent, ConfigExpression
from monai.utils.module import instantiate

import layertune
import layertune_monai
from bundle_examples import write_bundle as write_other_bundle
from bundle_runs import run_config, saved_state
from layertune_monai.bundle.adapt import adapt
from layertune_monai.bundle.methods import Method

# MONAI warns about every configuration that it runs.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

MADE = Path(__file__).with_name("made_by_0_1")
TARGETS = [
    "layertune.schemes.scheme",
    "layertune_monai.AlchemyHandler",
    "layertune_monai.GammaPenaltyHandler",
    "layertune_monai.LayerFreezeHandler",
    "layertune_monai.MetaLRHandler",
    "layertune_monai.checkpoints.BestModelSaver",
    "layertune_monai.checkpoints.RunSettings",
    "layertune_monai.checkpoints.state_of",
    "layertune_monai.decathlon.split_cases",
    "layertune_monai.decathlon.task_info",
    "layertune_monai.epoch_seeds.EpochSeeds",
    "layertune_monai.label_check.CheckLabelsd",
    "layertune_monai.load_pretrained",
    "layertune_monai.param_groups",
    "layertune_monai.polynomial_decay.PolynomialDecay",
    "layertune_monai.weights.load_pretrained",
    "layertune_monai.weights.tuned",
]
IMPORTS = {
    "$import layertune": ["map_layers"],
    "$import layertune_monai.bundle as bundle": ["check_patch", "check_paths", "describe_task"],
    "$import layertune_monai.checkpoints as checkpoints": ["last_checkpoint"],
    "$import layertune_monai.decathlon as decathlon": ["images_in"],
    "$import layertune_monai.phases as phases": ["check_switches", "identification"],
}
"""Each import of the 0.1 configurations, with the names that their expressions use of it."""

WIDTHS = {"network_def#channels": [2, 2, 2, 2], "hyper_lr": 0.1}
"""The network and the setting of the run that wrote the checkpoint, beside ``SMALL``."""


def strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from strings(part)


def test_the_lists_above_are_complete() -> None:
    texts = [text for file in MADE.glob("*.json") for text in strings(json.loads(file.read_text()))]
    assert sorted({text for text in texts if text.startswith("layertune")}) == TARGETS
    imports = {text for text in texts if text.startswith("$import layertune")}
    assert imports == set(IMPORTS)
    aliases = {line.rpartition(" ")[2]: set(names) for line, names in IMPORTS.items()}
    used: dict[str, set[str]] = {alias: set() for alias in aliases}
    for text in texts:
        for alias, name in re.findall(rf"(?<![@\w./])({'|'.join(aliases)})\.(\w+)\(", text):
            used[alias].add(name)
    assert used == aliases


@pytest.mark.parametrize("target", TARGETS)
def test_monai_finds_what_the_components_name(target: str) -> None:
    component = ConfigComponent({"_target_": target})
    assert callable(instantiate(component.resolve_module_name(), "callable"))


@pytest.mark.parametrize("line", IMPORTS)
def test_monai_imports_what_the_expressions_use(line: str) -> None:
    names: dict[str, Any] = {}
    module = ConfigExpression(line, globals=names).evaluate()
    assert names == {line.rpartition(" ")[2]: module}
    assert all(callable(getattr(module, name)) for name in IMPORTS[line])


def test_the_names_of_0_1_are_those_of_today() -> None:
    from layertune_monai.bundle.version_0_1 import state_of
    from layertune_monai.weights import tuned

    assert state_of is layertune_monai.training_state
    assert tuned is layertune_monai.check_frozen_layers


def public_names() -> set[str]:
    packages = {"layertune": layertune, "layertune_monai": layertune_monai}
    return {f"{package}.{name}" for package, module in packages.items() for name in module.__all__}


def written_today(tmp_path: Path) -> dict[str, Any]:
    """The configurations that are written today, by the name of the file."""
    own = layertune_monai.write_bundle(tmp_path / "own")
    other = write_other_bundle(tmp_path / "other", "zoo")
    adapt(other, Method())
    files = [*own.glob("configs/*.json"), other / "configs/layertune.json"]
    return {file.name: json.loads(file.read_text()) for file in files if file.name != "metadata.json"}


def test_a_bundle_that_is_written_today_names_public_paths_only(tmp_path: Path) -> None:
    named = set()
    for content in written_today(tmp_path).values():
        for text in strings(content):
            named |= set(re.findall(r"(?<![@#\w./])layertune\w*(?:\.\w+)+", text))
            assert not re.search(r"import layertune\w*\.|from layertune", text), text
    assert len(named) > 20
    assert named <= public_names()


@pytest.fixture
def old_bundle(bundle: Path) -> Path:
    """The bundle as version 0.1 wrote it."""
    for name in ("train", "inference", "evaluate"):
        copy(MADE / f"{name}.json", bundle / "configs")
    return bundle


@pytest.mark.slow
def test_the_bundle_trains_evaluates_and_predicts(old_bundle: Path, data: Path) -> None:
    run_config(old_bundle, data, **WIDTHS)
    state = saved_state(old_bundle)
    assert state["trainer"]["iteration"] == 4
    assert len({float(group["meta_scale"]) for group in state["optimizer"]["param_groups"]}) > 2
    run_config(old_bundle, data, "evaluate", **WIDTHS)
    assert (old_bundle / "eval/metrics.csv").is_file()
    run_config(old_bundle, data, config="inference", images=str(data / "Task04_Hippocampus/imagesTr"), **WIDTHS)
    assert len(list(old_bundle.glob("eval/*_seg.nii.gz"))) == 8


@pytest.mark.slow
@pytest.mark.parametrize("method", ["norm_only", "bnscale", "alchemy_metalr", "bidirectional"])
def test_the_bundle_has_its_methods(old_bundle: Path, data: Path, method: str) -> None:
    phases = {"quantile": 0.25, "whole_layers": True} if method == "alchemy_metalr" else {}
    run_config(old_bundle, data, method=method, **phases)
    assert saved_state(old_bundle)["settings"]["method"] == method


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this run began under the rule joint")  # a new bundle has another default
@pytest.mark.parametrize("age", ["old", "new"])
def test_a_run_of_0_1_resumes(age: str, bundle: Path, data: Path, request: pytest.FixtureRequest) -> None:
    """The run of 0.1 had done the first of two epochs."""
    if age == "old":
        request.getfixturevalue("old_bundle")
    copy(MADE / "checkpoint_epoch=1.pt", bundle / "models")
    before = saved_state(bundle, 1)
    run_config(bundle, data, resume=True, **{**WIDTHS, "epochs": 2})
    after = saved_state(bundle, 2)
    assert after["trainer"]["iteration"] == 4, "two steps were done, and two follow"
    assert after["metalr"]["meta_batches"]["drawn"] == 4
    for old, new in zip(before["optimizer"]["param_groups"], after["optimizer"]["param_groups"], strict=True):
        assert old["layer"] == new["layer"]
        assert new["meta_scale"] != old["meta_scale"]
    history, longer = (state["optimizer"]["param_groups"][0]["meta_history"] for state in (before, after))
    assert longer["layers"] == history["layers"]
    assert torch.equal(longer["values"][:2], history["values"]), "the history goes on with that of the first epoch"
    assert len(longer["values"]) == 4
    best = after["best"]["best"]["best_metric"]
    assert best >= before["best"]["best"]["best_metric"], "the best score of the first epoch is known"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["metalr", "bidirectional"])
def test_an_adaptation_trains(method: str, tmp_path: Path) -> None:
    from monai.bundle import run

    other = write_other_bundle(tmp_path / "other", "zoo")
    copy(MADE / f"adapted_{method}.json", other / "configs/layertune.json")
    files = [str(other / "configs" / name) for name in ("train.json", "layertune.json")]
    run(config_file=files, logging_file=False, bundle_root=str(other))
    start, end = (torch.load(other / "models" / name, weights_only=True) for name in ("model.pt", "layertune/model.pt"))
    moved = {name for name in start if name.endswith("weight") and not torch.equal(start[name], end[name])}
    assert ("model.0.conv.weight" in moved) == (method == "metalr")
    assert moved

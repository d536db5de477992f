"""Network Alchemy as a study: several checkpoints, methods that follow others, and its tables and figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from layertune.cli.app import app
from layertune_studies.config.study import Study
from layertune_studies.engine import run as engine_run
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.run import run_study
from layertune_studies.errors import StudyError
from layertune_studies.results.alchemy import ALCHEMY_FIGURES, ALCHEMY_TABLES
from layertune_studies.results.table import RowKey, chosen_trials, is_whole, make_rows
from study_runs import study_of, volumes, write_study

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)
FRESH = {"kind": "alchemy", "identification": 0, "quantile": 0.5, "lr": "tuned", "checkpoints": ["inverted"]}
CHANGES: dict[str, Any] = {
    "data": {"set": "volumes", "classes": 2, "labelled": [2], "reserved": 2, "split": {"folds": 4}},
    "network": {"name": "UNet", "arguments": {"channels": [2, 4], "strides": [2], "norm": "batch"}},
    "checkpoints": {
        "scratch": {},
        "inverted": {"task": "inverted", "cases": 2, "steps": 4, "batch": 2},
        "early": {"task": "inverted", "cases": 2, "steps": 4, "batch": 2, "early": 4},
    },
    "budget": {"unit": "steps", "amount": 2, "batch": 2},
    "methods": [
        {"kind": "flat"},
        {"kind": "norm_only", "lr": [0.1, 0.03]},
        {"kind": "norm_only", "title": "ranking", "head": True, "lr": [0.1], "amount": 1},
        {**FRESH, "title": "modification"},
        {**FRESH, "after": "norm_only"},
    ],
    "clip": {"shares": [0.2, 0.5], "draws": 2, "methods": ["flat"], "checkpoints": ["scratch", "early"]},
    "metrics": ["dice"],
    "seeds": 2,
    "keep_networks": True,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volumes(tmp_path_factory.mktemp("data"), count=12)


@pytest.fixture(scope="module")
def context(root: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    """A finished study."""
    study = Study.model_validate(study_of(**CHANGES))
    return StudyContext(study, root, run_study(study, tmp_path_factory.mktemp("study"), root, console=QUIET))


def test_every_method_starts_from_its_checkpoints(context: StudyContext) -> None:
    rows = make_rows(context.study, chosen_trials(context))
    everywhere = [(method, name) for name in CHANGES["checkpoints"] for method in ("flat", "norm_only", "ranking")]
    assert {(row.method, row.checkpoint) for row in rows} == {
        *everywhere,
        ("modification", "inverted"),
        ("alchemy", "inverted"),
    }
    assert is_whole(context, rows)
    assert all(len(row.seeds) == 2 for row in rows)


def test_a_checkpoint_is_pretrained_once(context: StudyContext) -> None:
    assert len(list(context.store.results.glob("pretraining_*.pt"))) == 2, "random weights need none"


def test_a_method_goes_on_from_the_best_network_of_another(context: StudyContext) -> None:
    chosen = chosen_trials(context)
    (one, _), (before, _) = chosen[RowKey("alchemy", 2, "inverted")], chosen[RowKey("norm_only", 2, "inverted")]
    assert one.trial.after == before.trial.name(before.context.study)
    start, network = one.context.start(one.trial), before.context.network(one.trial.after)
    assert start is not None
    assert all(start[name].equal(tensor) for name, tensor in network.state_dict().items())
    assert one.result["redundant"] > 0
    assert one.result["identity"]["after"] == one.trial.after


def test_a_ranking_takes_its_own_number_of_steps(context: StudyContext) -> None:
    chosen = chosen_trials(context)
    assert {one.result["steps"] for one in chosen[RowKey("ranking", 2, "early")]} == {1}
    assert {one.result["steps"] for one in chosen[RowKey("flat", 2, "early")]} == {2}


def test_a_finished_study_is_not_run_again(context: StudyContext, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_run, "run_trial", lambda *_: pytest.fail("a finished trial was run again"))
    run_study(context.study, context.store.folder, root, console=QUIET)


def test_the_tables(context: StudyContext) -> None:
    gammas = ALCHEMY_TABLES["gammas"](context, 2)
    assert len(gammas) == 1 + 3 * 3 + 2
    assert [row[-1] for row in gammas if row[:2] == ["modification", "inverted"]] != [""]
    clip = ALCHEMY_TABLES["clip"](context, 2)
    assert [row[:3] for row in clip[1:]] == [
        ["flat", name, share] for name in ("scratch", "early") for share in ("17%", "50%")
    ]
    ranks = ALCHEMY_TABLES["ranks"](context, 2)
    assert [row[:2] for row in ranks[1:]] == [[name, seed] for name in ("norm_only", "ranking") for seed in ("0", "1")]
    assert all(set(row[2].split("; ")) == set(CHANGES["checkpoints"]) for row in ranks[1:])


def test_a_clip_test_is_measured_once(context: StudyContext, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ALCHEMY_TABLES["clip"](context, 2)
    monkeypatch.setattr("layertune_studies.results.alchemy.clip_test", lambda *_: pytest.fail("measured again"))
    assert ALCHEMY_TABLES["clip"](context, 2) == before


@pytest.mark.parametrize("name", ALCHEMY_FIGURES)
def test_the_figures(context: StudyContext, name: str) -> None:
    axes = ALCHEMY_FIGURES[name](context, 2).axes
    assert len(axes) >= 2
    assert all(ax.has_data() for ax in axes)


def test_the_commands(context: StudyContext, root: Path, tmp_path: Path) -> None:
    config = write_study(tmp_path / "study.yaml", **CHANGES)
    options = ["--out", str(context.store.folder), "--root", str(root)]
    table = CliRunner().invoke(app, ["study", "table", str(config), *options])
    assert "| method | checkpoint | labelled | dice |" in table.stdout
    assert "| alchemy | inverted | 2 |" in table.stdout
    ranks = CliRunner().invoke(app, ["study", "table", str(config), *options, "--of", "ranks", "--json"])
    assert [row["method"] for row in json.loads(ranks.stdout)] == ["norm_only", "norm_only", "ranking", "ranking"]
    page = CliRunner().invoke(app, ["study", "page", str(config), *options])
    assert page.exit_code == 0, page.output
    text = (context.store.folder / "page.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 4
    assert "modification, inverted" in text


def test_gammas_need_networks(context: StudyContext) -> None:
    study = context.study.model_copy(update={"keep_networks": False})
    with pytest.raises(StudyError, match="set keep_networks: true, and run the study again"):
        ALCHEMY_TABLES["gammas"](StudyContext(study, context.root, context.store), 2)


def test_kernels_start_afresh_by_the_seed_of_the_trial(root: Path, tmp_path: Path) -> None:
    """A study that has a seed draws other kernels on each seed."""
    methods = [{**FRESH, "lr": [1e-9], "checkpoints": None}]
    changes = {**CHANGES, "checkpoints": {}, "clip": None, "methods": methods, "seed": 0}
    study = Study.model_validate(study_of(**changes))
    store = run_study(study, tmp_path, root, console=QUIET)
    (one, other) = chosen_trials(StudyContext(study, root, store))[RowKey("alchemy", 2)]
    networks = [found.context.network(found.trial.name(study)).state_dict() for found in (one, other)]
    assert not any(
        torch.equal(networks[0][name], networks[1][name]) for name in networks[0] if name.endswith("conv.weight")
    )

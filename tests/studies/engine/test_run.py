"""Studies run: each method within its budget, resumed where they stopped, one at a time, written whole or not."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from layertune_studies.config.study import Study
from layertune_studies.data.cases import draw
from layertune_studies.engine import context as study_context
from layertune_studies.engine import run as study_run
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.held_data import study_cases
from layertune_studies.engine.run import run_study
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import Trial, run_trial, training_of
from layertune_studies.errors import DataError, DiskError, FolderError, StudyError
from layertune_studies.results.table import chosen_trials
from layertune_studies.training import network as study_network
from layertune_studies.training.loop import Training, TrainingResult
from layertune_studies.training.methods import train
from layertune_studies.training.settings import Setting
from study_runs import METHODS, study_of, volumes, write_images

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder


def study(**changes: Any) -> Study:
    return Study.model_validate(study_of(**changes))


def budget_of(amount: int) -> dict[str, Any]:
    return {"unit": "passes", "amount": amount, "batch": 4}


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "results").glob("*_seed*.json"))


def results(out: Path, method: str) -> list[dict[str, Any]]:
    return [json.loads((out / "results" / name).read_text()) for name in names(out) if name.startswith(f"{method}_")]


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all methods, finished."""
    out = tmp_path_factory.mktemp("whole")
    run_study(study(methods=METHODS), out, root, console=QUIET)
    return out


@pytest.mark.slow
def test_every_trial_is_there_once(whole: Path) -> None:
    # Two rates; the tuned one for two settings each of two methods and one of another; one for each of the others, of
    # which L2-SP has two weights.
    assert len(names(whole)) == 2 + 1 + 2 + 2 + 1 + 1 + 1 + 1 + 2 + 3 + 1 + 9


@pytest.mark.slow
def test_every_method_gets_the_same_passes(whole: Path) -> None:
    passes = {
        name.split("_seed")[0]: json.loads((whole / "results" / name).read_text())["passes"] for name in names(whole)
    }
    # Every second step a meta pass: 2.67 steps of 1.5 passes fit into 4, which are 2 steps.
    assert passes.pop("metalr-every_all_lr0.01_n8") == 3
    # 50 forward passes renew the statistics of batch norms before the evaluation, each a third of a pass.
    assert passes.pop("schedulefree_adamw_all_lr0.01_n8") == pytest.approx(4 + 50 / 3)
    assert set(passes.values()) == {4}
    assert results(whole, "metalr-exact")[0]["steps"] == 2


@pytest.mark.slow
def test_the_tuned_rate_is_the_one_that_validation_chose(whole: Path) -> None:
    scores = {one["identity"]["lr"]: one["validation"] for one in results(whole, "flat")}
    best = max(scores, key=lambda lr: (scores[lr]["accuracy"], scores[lr]["auc"], -lr))
    for method in ("layer-wise", "bi-directional", "layer-decay"):
        assert {one["identity"]["lr"] for one in results(whole, method)} == {best}


@pytest.mark.slow
def test_learned_rates_are_kept(whole: Path) -> None:
    (exact,) = results(whole, "metalr-exact")
    assert len(exact["lrs"]) == 10
    assert len(exact["profile"]["steps"]) == 2
    (autolr,) = results(whole, "autolr")
    assert autolr["trials"][0][:2] == [1, 1]


@pytest.mark.slow
def test_what_is_there_is_not_run_again(whole: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (whole / "results" / name).stat().st_mtime_ns for name in names(whole)}
    monkeypatch.setattr(study_run, "run_trial", lambda *_: pytest.fail("a finished trial was run again"))
    run_study(study(methods=METHODS), whole, root, console=QUIET)
    assert {name: (whole / "results" / name).stat().st_mtime_ns for name in names(whole)} == before


@pytest.mark.slow
def test_more_seeds_and_methods_add_to_what_is_there(root: Path, tmp_path: Path) -> None:
    run_study(study(), tmp_path, root, console=QUIET)
    first = names(tmp_path)
    run_study(study(seeds=2, methods=[{"kind": "flat"}, {"kind": "last", "lr": [0.1]}]), tmp_path, root, console=QUIET)
    assert len(names(tmp_path)) == 6
    assert set(first) < set(names(tmp_path))


@pytest.mark.slow
def test_a_crash_loses_the_trial_that_ran_and_the_rest_comes_out_alike(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [{"kind": "flat"}, {"kind": "metalr", "lr": [0.01]}]
    run_study(study(methods=methods), tmp_path / "whole", root, console=QUIET)
    done = []

    def crash(*args: Any) -> dict[str, Any]:
        if len(done) == 2:
            raise RuntimeError("the power went out")
        done.append(1)
        return run_trial(*args)

    monkeypatch.setattr(study_run, "run_trial", crash)
    with pytest.raises(RuntimeError, match="power"):
        run_study(study(methods=methods), tmp_path / "cut", root, console=QUIET)
    monkeypatch.undo()
    assert len(names(tmp_path / "cut")) == 2
    run_study(study(methods=methods), tmp_path / "cut", root, console=QUIET)
    assert names(tmp_path / "cut") == names(tmp_path / "whole")
    for name in names(tmp_path / "cut"):
        one, two = (json.loads((tmp_path / part / "results" / name).read_text()) for part in ("cut", "whole"))
        assert {key: one[key] for key in one if key != "seconds"} == {key: two[key] for key in two if key != "seconds"}


def test_an_interrupted_study_says_how_to_go_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(study_run, "run_trial", interrupted)
    with pytest.raises(SystemExit) as caught:
        run_study(study(), tmp_path, root)
    assert caught.value.code == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    with StudyStore(tmp_path).locked():
        pass


def test_networks_are_kept_where_they_are_asked_for(root: Path, tmp_path: Path) -> None:
    store = run_study(study(lrs=[0.1], keep_networks=True), tmp_path, root, console=QUIET)
    (name,) = names(tmp_path)
    assert "fc.weight" in store.load_tensors(name.removesuffix(".json"))


def test_networks_that_are_asked_for_later_are_made_then(root: Path, tmp_path: Path) -> None:
    run_study(study(lrs=[0.1]), tmp_path, root, console=QUIET)
    (before,) = results(tmp_path, "flat")
    store = run_study(study(lrs=[0.1], keep_networks=True), tmp_path, root, console=QUIET)
    (name,) = names(tmp_path)
    assert store.tensors(name.removesuffix(".json")).is_file()
    (after,) = results(tmp_path, "flat")
    assert {**after, "seconds": None} == {**before, "seconds": None}


def test_the_last_layer_alone_takes_a_budget_of_one_step(root: Path, tmp_path: Path) -> None:
    budget = {"unit": "steps", "amount": 1, "batch": 4}
    run_study(study(methods=[{"kind": "last-then-all", "lr": [0.01]}], budget=budget), tmp_path, root, console=QUIET)
    assert [one["steps"] for one in results(tmp_path, "last-then-all")] == [1]


def trained_by_autolr(
    root: Path, amount: int, **changes: Any
) -> tuple[Training, TrainingResult, dict[str, torch.Tensor]]:
    """An epoch has two steps, and no trial is good enough for a threshold of 1; the weights before are given too."""
    config = study(methods=[{"kind": "autolr", "lr": [0.01], "threshold": 1.0}], budget=budget_of(amount), **changes)
    (method,) = config.methods
    training = training_of(config, Trial(method, Setting("all"), 0.01, 8, 0), root, None)
    before = {name: weight.clone() for name, weight in training.network.named_parameters()}
    with pytest.warns(RuntimeWarning, match="the best trial is kept"):
        trained = train(training, method, Setting("all"))
    return training, trained, before


@pytest.mark.parametrize(("amount", "trials"), [(1, 1), (2, 1), (3, 2)])
def test_autolr_keeps_the_best_trial_where_the_budget_ends(root: Path, amount: int, trials: int) -> None:
    training, trained, before = trained_by_autolr(root, amount)
    assert trained.steps == amount
    assert trained.trials is not None
    assert [number for _, number, *_ in trained.trials] == list(range(1, trials + 1))
    assert not any(accepted for *_, accepted in trained.trials)
    after = dict(training.network.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in after if after[name].ndim > 1)


def test_autolrs_rates_fall_with_the_passes_as_all_methods_do(root: Path) -> None:
    _, trained, _ = trained_by_autolr(root, 6, optimizer={"name": "sgd", "schedule": "cosine"})
    assert trained.trials is not None
    assert len(trained.trials) == 3, "all of one epoch"
    assert trained.lrs is not None
    assert max(trained.lrs.values()) == pytest.approx(0.0, abs=1e-12)


def test_scratch_is_random_whatever_the_network_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked: list[Any] = []
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **given: (asked.append(given.pop("pretrained", False)), create(name, **given))[1],
    )
    config = study(network={"name": "test_resnet", "arguments": {"pretrained": True}}, methods=[{"kind": "scratch"}])
    (method,) = config.methods
    study_network._layers.cache_clear()
    training_of(config, Trial(method, Setting("all"), 0.01, 8, 0), root, None)
    assert asked == [False, True], "the network itself; its layers are looked at in one as the file says"


def test_validation_studies_do_not_look_at_the_test_cases(root: Path, tmp_path: Path) -> None:
    run_study(study(lrs=[0.1], report="validation"), tmp_path, root, console=QUIET)
    assert results(tmp_path, "flat")[0]["test"] is None


@pytest.mark.slow
def test_pretraining_is_done_once_and_random_weights_stay_random(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"task": "digits", "cases": 20, "steps": 2, "batch": 4}
    budget = {"unit": "steps", "amount": 1, "batch": 2}
    changes = {"network": {"name": "test_resnet"}, "budget": budget, "methods": [{"kind": "flat"}, {"kind": "scratch"}]}
    config = study(pretraining=task, lrs=[1e-9], **changes)
    run_study(config, tmp_path, root, console=QUIET)
    assert len(list((tmp_path / "results").glob("pretraining_*.pt"))) == 1
    scores = {one["method"]: one["test"]["auc"] for one in map(_scored, ("flat", "scratch"), [tmp_path] * 2)}
    assert scores["flat"] != scores["scratch"]
    monkeypatch.setattr(study_context, "pretrain", lambda *_: pytest.fail("pre-trained again"))
    run_study(study(pretraining=task, lrs=[1e-8], **changes), tmp_path, root, console=QUIET)
    assert len(names(tmp_path)) == 4


def _scored(method: str, out: Path) -> dict[str, Any]:
    (found,) = results(out, method)
    return {"method": method, **found}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["inverted", "genesis"])
def test_volumes_are_segmented_in_patches_after_pretraining_on_other_cases(tmp_path: Path, task: str) -> None:
    config = study(
        data={
            "set": "volumes",
            "classes": 2,
            "patch": [8, 8, 4],
            "labelled": [3],
            "holdout": 0.4,
            "split": {"folds": 4},
        },
        network={"name": "UNet", "arguments": {"channels": [2, 4, 8], "strides": [2, 2], "norm": "batch"}},
        pretraining={"task": task, "cases": 2, "steps": 2, "batch": 2},
        budget={"unit": "passes", "amount": 4, "batch": 2},
        lrs=[0.1],
        methods=[
            {"kind": "flat"},
            {"kind": "unet", "schemes": ["contracting", "bottom-up-1"], "lr": "tuned"},
            {"kind": "metalr", "lr": [0.1]},
        ],
        metrics=["dice", "sensitivity"],
    )
    run_study(config, tmp_path / "out", volumes(tmp_path, count=12), console=QUIET)
    assert [len(results(tmp_path / "out", name)) for name in ("flat", "unet", "metalr-exact")] == [1, 2, 1]
    for found in results(tmp_path / "out", "unet"):
        assert set(found["test"]) == {"dice", "dice_1", "ppv", "sensitivity"}
        assert all(0 <= value <= 1 for value in found["test"].values())
    # Six training cases, of which two were pre-trained on.
    with pytest.raises(DataError, match=r"5 labelled cases were asked for, and there are 4 .*after 2 for pre-training"):
        draw(study_cases(config, tmp_path), 5, seed=0, reserved=2)


@pytest.mark.parametrize("method", [{"kind": "flat"}, {"kind": "alchemy", "identification": 0.5}])
def test_a_trial_that_diverged_scores_nothing(root: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    run_study(study(lrs=[1e30], methods=[method]), tmp_path, root, console=QUIET)
    (found,) = results(tmp_path, method["kind"])
    assert found["diverged"]
    assert set(found["validation"].values()) == {0.0}


def test_the_meta_batch_never_sees_validation_or_test(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layertune_studies.data import batches as study_batches

    seen: list[torch.Tensor] = []
    make = study_batches.batch_of

    def watched(cases: Any, count: int, *, key: Any, augment: Any) -> Any:
        seen.extend(case.image for case in cases)
        return make(cases, count, key=key, augment=augment)

    monkeypatch.setattr(study_batches, "batch_of", watched)
    config = study(methods=[{"kind": "metalr", "lr": [0.01]}])
    run_study(config, tmp_path, root, console=QUIET)
    cases = study_cases(config, root)
    held_out = [case.image for part in (cases.validation, cases.test) for case in part]
    assert seen
    assert not any(torch.equal(image, other) for image in seen for other in held_out)


# One clear error


def test_two_runs_of_one_study_at_once(root: Path, tmp_path: Path) -> None:
    with StudyStore(tmp_path).locked(), pytest.raises(FolderError, match="another run of this study is working"):
        run_study(study(), tmp_path, root, console=QUIET)
    run_study(study(lrs=[0.1]), tmp_path, root, console=QUIET)
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskError), (errno.EDQUOT, DiskError), (errno.EACCES, FolderError)]
)
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    store = StudyStore(tmp_path)
    store.save("first", {"value": 1})

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(kind, match=r"the disk is full: .*second.json|second.json cannot be written \(Permission"):
        store.save("second", {"value": 2})
    assert sorted(path.name for path in store.results.iterdir()) == ["first.json"]
    assert store.load("first") == {"value": 1}


def test_a_study_on_a_full_disk_ends_with_one_line_and_goes_on_later(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from layertune.cli.app import app
    from study_runs import write_study

    config = write_study(tmp_path / "study.yaml")
    command = ["study", "run", str(config), "--out", str(tmp_path / "out"), "--root", str(root)]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("layertune: the disk is full:")
    assert CliRunner().invoke(app, command).exit_code == 0


def test_a_folder_that_is_a_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FolderError, match=r"cannot be written .* give another folder with --out"):
        run_study(study(), tmp_path / "taken", root, console=QUIET)


def test_a_damaged_result_is_named(root: Path, tmp_path: Path) -> None:
    run_study(study(lrs=[0.1]), tmp_path, root, console=QUIET)
    (tmp_path / "results" / names(tmp_path)[0]).write_text('{"identity": ')
    with pytest.raises(FolderError, match="remove it, and its trial is run again"):
        run_study(study(lrs=[0.1]), tmp_path, root, console=QUIET)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"metrics": ["dice"]}, StudyError, "metrics: dice is none of accuracy, balanced_accuracy, .* sensitivity_2"),
        ({"network": {"name": "resnet999"}}, ValueError, "resnet999"),
        ({"data": {"set": "pneumoniamnist"}}, StudyError, "gives 3 classes, and the data have 2"),
        (
            {"data": {"set": "pneumoniamnist", "classes": 3, "labelled": [13]}},
            DataError,
            "13 labelled cases were asked",
        ),
        ({"methods": [{"kind": "layer-wise", "first": [11], "lr": [0.1]}]}, ValueError, "has depths 1 to 10"),
        ({"methods": [{"kind": "unet", "lr": [0.1]}]}, ValueError, "needs a network with an expanding path"),
        ({"methods": [{"kind": "unet", "schemes": ["left"], "lr": [0.1]}]}, ValueError, "'left' is no U-Net scheme"),
        ({"pretraining": {"weights": "no.pt"}}, DataError, "pretraining.weights no.pt: there is no .*no.pt"),
        ({"pretraining": {"weights": "genesis-chest-ct"}}, DataError, "there is no .* Models Genesis.*https://"),
        ({"pretraining": {"task": "inverted", "cases": 2}}, StudyError, "for images take digits"),
        ({"pretraining": {"task": "genesis", "cases": 2}}, StudyError, "task genesis is for volumes"),
        ({"pretraining": {"task": "digits"}}, StudyError, "gives 3 classes, and digits have 10"),
        ({"pretraining": {"task": "digits", "cases": 1501}}, StudyError, "there are 1500 digits to pre-train on"),
        ({"methods": [{"kind": "layer-wise", "first": [5, 11], "lr": [0.1]}]}, ValueError, "has depths 1 to 10"),
        ({"data": {"set": "pneumoniamnist", "classes": 3, "labelled": [8, 13]}}, DataError, "13 labelled cases"),
    ],
)
def test_what_cannot_be_run_is_said_before_much_is_done(
    root: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_study(study(**changes), tmp_path, root, console=QUIET)


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_images(tmp_path / "data", classes=4)
    with pytest.raises(DataError, match="its label is 3, and the 3 classes are counted from 0 to 2"):
        run_study(study(), tmp_path / "out", tmp_path / "data", console=QUIET)


def test_a_part_without_a_case(tmp_path: Path) -> None:
    write_images(tmp_path / "data", counts=(6, 0, 6))
    with pytest.raises(DataError, match="the val part of pneumoniamnist has no case"):
        run_study(study(), tmp_path / "out", tmp_path / "data", console=QUIET)


def test_a_table_of_nothing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no trial of small is finished; run it with `layertune study run`"):
        chosen_trials(StudyContext(study(), root, StudyStore(tmp_path)))

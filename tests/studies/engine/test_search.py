"""Successive halving: who goes on, what it costs, and that it goes on where it stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from layertune_studies.config.methods import InverseSizeMethod
from layertune_studies.config.study import Study
from layertune_studies.engine import run as study_run
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.run import run_study
from layertune_studies.engine.search import rounds
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import Trial, run_trial
from layertune_studies.errors import StudyError
from layertune_studies.results.table import RowKey, chosen_trials, make_rows
from layertune_studies.training.settings import Depths
from study_runs import study_of, write_images

QUIET = Console(quiet=True)
GRID = [[m, n] for m in range(1, 6) for n in range(m, 6)]


def study(**changes: Any) -> Study:
    method = {"kind": "bi-directional", "search": "halving", "settings": GRID, "lr": [0.01]}
    budget = {"unit": "passes", "amount": 16, "batch": 4}
    return Study.model_validate(study_of(network={"name": "test_resnet"}, methods=[method], budget=budget) | changes)


def finished(context: StudyContext, score: Callable[[Trial], float], amounts: Sequence[int]) -> None:
    """Write results of made-up scores for all trials, at some of the budgets."""
    for part, _ in rounds(context.study, context.study.methods[0], len(context.trials)):
        for trial in context.trials if part.budget.amount in amounts else ():
            scores = {"accuracy": score(trial), "auc": 0.5}
            held = {"validation": scores, "test": scores, "passes": part.budget.amount}
            context.store.save(trial.name(part), held)


def made_up(tmp_path: Path, settings: Sequence[Any] = GRID) -> StudyContext:
    method = {"kind": "bi-directional", "search": "halving", "settings": list(settings), "lr": [0.01]}
    config = study(budget={"unit": "passes", "amount": 240, "batch": 4}, methods=[method])
    context = StudyContext(config, None, StudyStore(tmp_path))
    context.__dict__["depths"] = Depths(6, 0)
    return context


def test_the_better_eighth_goes_on_and_every_pass_is_counted(tmp_path: Path) -> None:
    context = made_up(tmp_path)
    finished(context, lambda trial: sum(trial.setting.numbers), [15])
    assert context.found(context.trials) is None
    # At the end m1-n1 would be the best, but it is not among the two that go on.
    finished(context, lambda trial: -sum(trial.setting.numbers), [240])
    found = context.found(context.trials)
    assert found is not None
    results, passes = found
    assert {trial.setting.label for trial in results} == {"m5-n5", "m4-n5"}
    assert passes == 15 * 15 + 2 * 240
    (chosen,) = chosen_trials(context)[RowKey("bidirectional", 8)]
    assert (chosen.trial.setting.label, chosen.passes) == ("m4-n5", passes)


def test_of_few_settings_one_goes_on(tmp_path: Path) -> None:
    context = made_up(tmp_path, [[1, 1], [2, 2], [3, 3]])
    finished(context, lambda trial: trial.setting.numbers[0], [15, 240])
    found = context.found(context.trials)
    assert found is not None
    assert [trial.setting.label for trial in found[0]] == ["m3-n3"]


def searched_exponents(tmp_path: Path, exponents: Sequence[float]) -> StudyContext:
    method = {"kind": "inverse_size", "search": "halving", "rate": "learned", "exponents": list(exponents)}
    config = study(budget={"unit": "passes", "amount": 240, "batch": 4}, methods=[method])
    context = StudyContext(config, None, StudyStore(tmp_path))
    context.__dict__["depths"] = Depths(6, 0)
    return context


def test_three_exponents_are_all_trained_to_the_end(tmp_path: Path) -> None:
    context = searched_exponents(tmp_path, [0, 0.5, 1])
    assert context.found(context.trials) is None
    finished(context, lambda trial: trial.setting.numbers[0], [240])
    (row,) = make_rows(context.study, chosen_trials(context))
    assert (row.method, row.settings, row.passes) == ("inverse_size-learned", ("exponent-1 at a learned rate",), 720)


def test_of_more_exponents_the_best_two_are_trained_to_the_end(tmp_path: Path) -> None:
    context = searched_exponents(tmp_path, [0, 0.25, 0.5, 0.75, 1])
    finished(context, lambda trial: trial.setting.numbers[0], [48])
    assert context.found(context.trials) is None
    finished(context, lambda trial: -trial.setting.numbers[0], [240])
    found = context.found(context.trials)
    assert found is not None
    results, passes = found
    assert [trial.setting.label for trial in results] == ["exponent-1", "exponent-0.75"]
    assert passes == 5 * 48 + 2 * 240 == 3 * 240
    assert chosen_trials(context)[RowKey("inverse_size-learned", 8)][0].trial.setting.label == "exponent-0.75"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 15, 100])
def test_a_search_of_other_methods_never_costs_more_than_three_trainings(count: int) -> None:
    one = Study.model_validate(study_of(budget={"unit": "passes", "amount": 2400, "batch": 4}))
    found = rounds(one, InverseSizeMethod(kind="inverse_size", search="halving"), count)
    assert sum(part.budget.amount * trials for part, trials in found) <= 3 * 2400
    assert (found[0][1], found[-1][1], found[-1][0].budget.amount) == (count, min(count, 3 if count < 4 else 2), 2400)


@pytest.mark.slow
def test_two_searches_of_one_study_have_rounds_of_their_own(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    exponents = {"kind": "inverse_size", "search": "halving", "rate": "learned"}
    budget = {"unit": "passes", "amount": 6, "batch": 4}
    pairs = {"kind": "bi-directional", "search": "halving", "settings": GRID[:3], "rate": "learned"}
    config = study(methods=[exponents, pairs], budget=budget)
    run_study(config, tmp_path / "out", tmp_path / "data", console=QUIET)
    found = chosen_trials(StudyContext(config, tmp_path / "data", StudyStore(tmp_path / "out")))
    (one,), (other,) = (found[RowKey(name, 8)] for name in ("inverse_size-learned", "bidirectional-learned"))
    assert one.passes == 3 * 6
    assert other.passes == 3 * 1 + 6
    assert one.result["profile"] is not None
    assert one.result["steps"] == other.result["steps"] == 6


@pytest.mark.slow
def test_a_search_goes_on_where_it_stopped_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "data")
    config = study()
    run_study(config, tmp_path / "whole", tmp_path / "data", console=QUIET)
    done = []

    def crash(*args: Any) -> dict[str, Any]:
        done.append(args[1].setting.label)
        if len(done) == 16:  # in the second round
            raise RuntimeError("the power went out")
        return run_trial(*args)

    monkeypatch.setattr(study_run, "run_trial", crash)
    with pytest.raises(RuntimeError, match="power"):
        run_study(config, tmp_path / "cut", tmp_path / "data", console=QUIET)
    with pytest.raises(StudyError, match="no trial of small is finished"):
        chosen_of(config, tmp_path, "cut")
    run_study(config, tmp_path / "cut", tmp_path / "data", console=QUIET)
    monkeypatch.undo()
    # 15 settings with one pass, 2 with sixteen; the one that was at work when the power went out again.
    assert len(done) == 15 + 2 + 1
    (whole,), (cut,) = chosen_of(config, tmp_path, "whole"), chosen_of(config, tmp_path, "cut")
    assert whole.passes == cut.passes == 15 * 1 + 2 * 16
    assert whole.trial == cut.trial
    assert whole.result["test"] == cut.result["test"]

    # The same settings all trained in the same folder change nothing in what the search has found.
    exhaustive = {"kind": "bi-directional", "title": "all settings", "settings": GRID, "lr": [0.01]}
    both = study(methods=[*study().model_dump(mode="json")["methods"], exhaustive])
    run_study(both, tmp_path / "whole", tmp_path / "data", console=QUIET)
    found = chosen_trials(StudyContext(both, tmp_path / "data", StudyStore(tmp_path / "whole")))
    assert found[RowKey("bidirectional", 8)][0].trial.setting == whole.trial.setting
    assert found[RowKey("all settings", 8)][0].passes == 15 * 16


def chosen_of(config: Study, folder: Path, out: str) -> list[Any]:
    return chosen_trials(StudyContext(config, folder / "data", StudyStore(folder / out)))[RowKey("bidirectional", 8)]

"""Successive halving: who goes on, what it costs, and that it goes on where it stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from layertune_studies import study_run
from layertune_studies.study_config import Study, StudyError
from layertune_studies.study_run import Workshop, run_study
from layertune_studies.study_search import successive_halving
from layertune_studies.study_settings import Depths
from layertune_studies.study_store import StudyStore
from layertune_studies.study_table import chosen_trials
from layertune_studies.study_trial import Trial, all_trials, run_trial
from study_runs import study_of, write_images

QUIET = Console(quiet=True)
GRID = [[m, n] for m in range(1, 6) for n in range(m, 6)]


def study(**changes: Any) -> Study:
    method = {"kind": "bi-directional", "search": "halving", "settings": GRID, "lr": [0.01]}
    budget = {"unit": "passes", "amount": 16, "batch": 4}
    return Study.model_validate(study_of(network={"name": "test_resnet"}, methods=[method], budget=budget) | changes)


def scored(score: float, passes: float) -> dict[str, Any]:
    return {"validation": {"accuracy": score, "auc": 0.5}, "passes": passes}


def test_the_better_eighth_goes_on_and_every_pass_is_counted() -> None:
    config = study(budget={"unit": "passes", "amount": 240, "batch": 4})
    trials = all_trials(config, Depths(6, 0))
    asked: list[tuple[int, list[str]]] = []

    def results_of(part: Study, trials: Sequence[Trial]) -> dict[Trial, dict[str, Any]]:
        asked.append((part.budget.amount, [trial.setting.label for trial in trials]))
        order = sorted(trial.setting.numbers for trial in trials)  # the last ones are the best
        return {trial: scored(order.index(trial.setting.numbers), part.budget.amount) for trial in trials}

    found = successive_halving(config, trials, results_of)
    assert [amount for amount, _ in asked] == [15, 240]
    assert len(asked[0][1]) == 15
    assert asked[1][1] == ["m5-n5", "m4-n5"]
    assert found is not None
    assert [trial.setting.label for trial in found.results] == ["m5-n5", "m4-n5"]
    assert found.passes == 15 * 15 + 2 * 240


def test_two_settings_are_compared_once_and_one_not_at_all() -> None:
    for count, budgets in ((2, [15, 240]), (1, [240])):
        config = study(budget={"unit": "passes", "amount": 240, "batch": 4})
        asked = []

        def results_of(part: Study, trials: Sequence[Trial], asked: list[int] = asked) -> dict[Trial, dict[str, Any]]:
            asked.append(part.budget.amount)
            return {trial: scored(0.5, 1) for trial in trials}

        successive_halving(config, all_trials(config, Depths(6, 0))[:count], results_of)
        assert asked == budgets


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
    found = chosen_trials(Workshop(both, tmp_path / "data", StudyStore(tmp_path / "whole")))
    assert found["bi-directional", 8][0].trial.setting == whole.trial.setting
    assert found["all settings", 8][0].passes == 15 * 16


def chosen_of(config: Study, folder: Path, out: str) -> list[Any]:
    return chosen_trials(Workshop(config, folder / "data", StudyStore(folder / out)))["bi-directional", 8]

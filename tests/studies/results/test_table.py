"""Tables and figures of a study: numbers against numpy and scipy, formats, and the command line."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from layertune import SaveError
from layertune.cli.app import app
from layertune_studies.config.study import Study
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import Trial
from layertune_studies.errors import StudyError
from layertune_studies.results.figures import FIGURES, plot_study
from layertune_studies.results.formats import render
from layertune_studies.results.statistics import interval, p_value
from layertune_studies.results.table import Row, RowKey, chosen_trials, make_rows, start_rows
from layertune_studies.training.settings import Depths
from study_runs import study_of, write_study

METHODS = [
    {"kind": "flat"},
    {"kind": "bi-directional", "settings": [[1, 1], [2, 3]], "lr": "tuned"},
    {"kind": "metalr", "rule": "joint", "lr": [0.01, 0.1]},
]
PROFILE = {
    "layers": ["stem", "head"],
    "depths": [1, 2],
    "steps": [1, 2],
    "scales": [[1.0, 1.0], [2.0, 3.0]],
    "lrs": [[0.1, 0.1], [0.2, 0.3]],
}


def made_up(trial: Trial) -> tuple[float, float]:
    """Validation and test accuracy: validation likes the rate 0.1 and the setting m2-n3, test their contraries."""
    likes = (trial.lr == 0.1) + 2 * (trial.setting.label == "m2-n3") + 4 * (trial.method.kind == "metalr")
    return 0.5 + 0.05 * likes, 0.9 - 0.05 * likes + 0.01 * trial.seed


@pytest.fixture
def context(tmp_path: Path) -> StudyContext:
    """A finished study of three seeds, whose numbers are made up; there are no images."""
    study = Study.model_validate(study_of(methods=METHODS, seeds=3))
    store = StudyStore(tmp_path / "out")
    shop = StudyContext(study, None, store)
    shop.__dict__["depths"] = Depths(10, 1)
    for trial in shop.trials:
        for one in [trial] if trial.lr else [Trial(trial.method, trial.setting, lr, 8, trial.seed) for lr in study.lrs]:
            validation, test = made_up(one)
            store.save(
                one.name(study),
                {
                    "identity": one.identity(study),
                    "validation": {"accuracy": validation, "auc": validation},
                    "test": {"accuracy": test, "auc": test},
                    "passes": 4,
                    "profile": PROFILE if one.method.kind == "metalr" else None,
                },
            )
    return shop


def test_validation_chooses_and_test_is_shown(context: StudyContext) -> None:
    rows = {row.method: row for row in make_rows(context.study, chosen_trials(context))}
    assert list(rows) == ["flat", "bidirectional", "metalr-exact-joint"]
    assert rows["flat"].settings == ("all at 0.1",) * 3
    assert rows["flat"].values["accuracy"] == pytest.approx([0.85, 0.86, 0.87])
    assert rows["bidirectional"].settings == ("m2-n3 at 0.1",) * 3, "at the rate that the flat method chose"
    assert rows["bidirectional"].values["accuracy"] == pytest.approx([0.75, 0.76, 0.77])


def test_the_cost_is_that_of_all_settings(context: StudyContext) -> None:
    assert {row.method: row.passes for row in make_rows(context.study, chosen_trials(context))} == {
        "flat": 8,
        "bidirectional": 8,
        "metalr-exact-joint": 8,
    }


def test_tests_are_against_the_best_baseline(context: StudyContext) -> None:
    rows = {row.method: row for row in make_rows(context.study, chosen_trials(context))}
    assert rows["flat"].p is None, "the best baseline itself"
    # Three seeds whose differences are all the same: 2 / 2 ** 3.
    assert rows["bidirectional"].p == rows["metalr-exact-joint"].p == 0.25


def test_a_method_is_shown_on_the_seeds_that_are_finished(context: StudyContext) -> None:
    trial = next(one for one in context.trials if one.method.kind == "metalr" and one.seed == 2)
    (context.store.results / f"{trial.name(context.study)}.json").unlink()
    rows = {row.method: row for row in make_rows(context.study, chosen_trials(context))}
    assert len(rows["metalr-exact-joint"].values["accuracy"]) == 2
    assert rows["metalr-exact-joint"].p is None, "not paired"


def test_other_seeds_are_not_paired(context: StudyContext) -> None:
    for kind, seed in (("metalr", 2), ("flat", 0)):
        for trial in (one for one in context.trials if one.method.kind == kind and one.seed == seed):
            (context.store.results / f"{trial.name(context.study)}.json").unlink()
    rows = {row.method: row for row in make_rows(context.study, chosen_trials(context))}
    assert (rows["flat"].seeds, rows["metalr-exact-joint"].seeds) == ((1, 2), (0, 1))
    assert rows["metalr-exact-joint"].p is None


def test_starting_rates_with_the_worst_and_the_best(context: StudyContext) -> None:
    rows = {row.method: row for row in start_rows(context)}
    flat = ["flat, from 0.01", "flat, from 0.1", "flat, worst", "flat, best"]
    assert [name for name in rows if name.startswith("flat")] == flat
    assert rows["flat, worst"].settings == ("flat, from 0.1",)
    assert rows["flat, best"].values == rows["flat, from 0.01"].values


def test_starting_rates_are_compared_on_the_same_seeds(context: StudyContext) -> None:
    trial = next(one for one in context.trials if one.method.kind == "flat" and one.lr == 0.1 and one.seed == 1)
    (context.store.results / f"{trial.name(context.study)}.json").unlink()
    rows = {row.method: row for row in start_rows(context)}
    assert rows["flat, from 0.01"].seeds == rows["flat, from 0.1"].seeds == (0, 2)
    assert rows["metalr-exact-joint, from 0.01"].seeds == (0, 1, 2)


def test_the_figure_of_starting_rates_shows_the_table(context: StudyContext) -> None:
    rows = {row.method: row for row in start_rows(context)}
    (axes,) = FIGURES["starting-rates"](context, 8).axes
    for line in axes.lines:
        title = str(line.get_label())
        wanted = [np.median(rows[f"{title}, from {lr:g}"].values["accuracy"]) for lr in (0.01, 0.1)]
        assert np.asarray(line.get_ydata()) == pytest.approx(100 * np.array(wanted))


def test_of_rates_alike_on_validation_the_heat_map_does_not_ask_the_test_cases(tmp_path: Path) -> None:
    method = {"kind": "bi-directional", "settings": [[1, 1]], "lr": [0.01, 0.1]}
    config = Study.model_validate(study_of(methods=[method], seeds=1))
    shop = StudyContext(config, None, StudyStore(tmp_path))
    shop.__dict__["depths"] = Depths(3, 1)
    for trial in shop.trials:
        test = {"accuracy": 0.3 if trial.lr == 0.01 else 0.9, "auc": 0.5}
        same = {"accuracy": 0.8, "auc": 0.5}
        shop.store.save(trial.name(config), {"validation": same, "test": test, "passes": 4})
    (chosen,) = chosen_trials(shop)[RowKey("bidirectional", 8)]
    (text,) = FIGURES["heat-map"](shop, 8).axes[0].texts
    assert float(text.get_text()) == 100 * chosen.result["test"]["accuracy"] == 30


def test_a_metric_that_was_not_measured_is_named(context: StudyContext) -> None:
    wrong = StudyContext(context.study.model_copy(update={"metrics": ("acuracy",)}), None, context.store)
    wrong.__dict__["depths"] = context.depths
    with pytest.raises(StudyError, match="metrics: acuracy was not measured on these cases; there are accuracy, auc"):
        chosen_trials(wrong)


def test_the_interval_is_the_bootstraps() -> None:
    values = [0.71, 0.74, 0.75, 0.79, 0.86]
    low, high = interval(values)
    # All 5^5 samples with replacement, each as likely: the percentiles of their medians.
    medians = [np.median(sample) for sample in itertools.product(values, repeat=5)]
    assert (low, high) == pytest.approx(tuple(np.percentile(medians, [2.5, 97.5])), abs=0.012)
    assert interval([0.5]) == (0.5, 0.5)
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_the_test_counts_all_changes_of_sign() -> None:
    a, b = np.array([0.8, 0.9, 0.7, 0.85]), np.array([0.7, 0.92, 0.66, 0.8])
    signs = list(itertools.product((1, -1), repeat=4))
    means = [abs(np.mean((a - b) * sign)) for sign in signs]
    by_hand = np.mean([mean >= abs(np.mean(a - b)) - 1e-12 for mean in means])
    assert p_value(a.tolist(), b.tolist()) == pytest.approx(by_hand)


def test_formats(context: StudyContext) -> None:
    rows = make_rows(context.study, chosen_trials(context))
    markdown = render(context.study, rows, "markdown").splitlines()
    assert markdown[0] == "| method | labelled | accuracy | auc | p | passes | seeds |"
    assert markdown[2] == "| flat | 8 | 86.0 [85.0, 87.0] | 86.0 [85.0, 87.0] |  | 8 | 3 |"
    latex = render(context.study, [Row("50 % & more_", 8, rows[0].values)], "latex")
    assert r"50 \% \& more\_ & 8 & 86.0 [85.0, 87.0]" in latex
    assert latex.startswith(r"\begin{tabular}{lrrrrrr}")
    read = list(csv.DictReader(io.StringIO(render(context.study, rows, "csv"))))
    assert float(read[0]["accuracy_median"]) == 0.86
    assert (read[1]["p"], read[1]["settings"], read[1]["seeds"]) == ("0.25", "; ".join(["m2-n3 at 0.1"] * 3), "3")


def test_a_table_that_is_not_whole_says_so(
    context: StudyContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyContext, "depths", Depths(10, 1))  # there is no network to look at
    config = write_study(tmp_path / "study.yaml", methods=METHODS, seeds=3)
    command = ["table", config, "--out", context.store.folder]
    assert invoke(*command).stderr == ""
    trial = next(one for one in context.trials if one.method.kind == "metalr" and one.seed == 2)
    (context.store.results / f"{trial.name(context.study)}.json").unlink()
    told = invoke(*command)
    assert told.exit_code == 0
    assert told.stderr == f"Unfinished: `layertune study run {config}` goes on; what is there is shown.\n"


def test_of_one_seed_there_is_no_interval(context: StudyContext) -> None:
    (row,) = render(context.study, [Row("flat", 8, {"accuracy": [0.5], "auc": [0.75]})], "markdown").splitlines()[2:]
    assert row == "| flat | 8 | 50.0 | 75.0 |  |  | 1 |"


# Figures


@pytest.mark.parametrize("kind", ["heat-map", "rates-over-depth", "rates-over-time", "starting-rates"])
def test_figures_are_drawn(context: StudyContext, tmp_path: Path, kind: str) -> None:
    path = plot_study(context, kind, tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_shows_each_setting(context: StudyContext) -> None:
    figure: Figure = FIGURES["heat-map"](context, 8)
    image = figure.axes[0].images[0].get_array()
    # m on the x axis, n on the y axis, both from 1; the test accuracy of the middle seed at the tuned rate.
    assert image[0, 0] == pytest.approx(86)
    assert image[2, 1] == pytest.approx(76)
    assert np.isnan(np.ma.filled(image, np.nan)).sum() == 81 - 2


@pytest.mark.parametrize(
    ("kind", "labelled", "message"),
    [
        ("heatmap", None, "'heatmap' is no figure of a study; there are heat-map, rates-over-depth"),
        ("heat-map", 9, "9 is no number of labelled cases of this study: 8"),
        ("feature-maps", None, "set keep_networks: true"),
    ],
)
def test_figures_that_cannot_be_drawn(
    context: StudyContext, tmp_path: Path, kind: str, labelled: Any, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        plot_study(context, kind, tmp_path / "figure.png", labelled=labelled)


def test_a_figure_in_a_folder_that_is_not_there(context: StudyContext, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"figure.png cannot be written \(there is no folder"):
        plot_study(context, "heat-map", tmp_path / "nowhere" / "figure.png")


def test_a_study_without_learned_rates_has_no_figure_of_them(context: StudyContext, tmp_path: Path) -> None:
    for path in context.store.results.glob("metalr*"):
        path.unlink()
    with pytest.raises(StudyError, match="no method that learns rates is finished"):
        plot_study(context, "rates-over-depth", tmp_path / "figure.png")


# The command line


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


@pytest.mark.slow
def test_the_commands_from_the_file_to_the_figure(tmp_path: Path) -> None:
    from study_runs import write_images

    write_images(tmp_path / "data")
    methods = [{"kind": "flat"}, {"kind": "bi-directional", "settings": [[1, 1]], "lr": [0.1]}]
    config = write_study(tmp_path / "study.yaml", methods=methods, keep_networks=True)
    out = ["--out", tmp_path / "out"]
    ran = invoke("run", config, *out, "--root", tmp_path / "data")
    assert (ran.exit_code, ran.stdout.startswith("Results: ")) == (0, True), ran.output
    assert invoke("table", config, *out).stdout.splitlines()[2].startswith("| flat | 8 |")
    assert json.loads(invoke("table", config, *out, "--json").stdout)[0]["method"] == "flat"
    assert invoke("table", config, *out, "--starts", "--format", "csv").stdout.count("\n") == 5
    figure = invoke("plot", config, "feature-maps", "--file", tmp_path / "maps.png", *out, "--root", tmp_path / "data")
    assert figure.exit_code == 0, figure.output
    assert (tmp_path / "maps.png").is_file()


@pytest.mark.parametrize("command", ["run", "table"])
def test_a_mistake_is_one_line(tmp_path: Path, command: str) -> None:
    config = write_study(tmp_path / "study.yaml", sedes=1)
    result = invoke(command, config, "--out", tmp_path / "out")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "sedes is no key of a study; did you mean seeds?" in result.stderr


def test_missing_data_are_answered_with_their_page(tmp_path: Path) -> None:
    result = invoke("run", write_study(tmp_path / "study.yaml"), "--out", tmp_path / "out", "--root", tmp_path)
    assert result.exit_code == 2
    assert "Licence: CC BY 4.0. Layout: the file pneumoniamnist.npz" in result.stderr.splitlines()[-1]

"""`layertune demo`: its study, its folder, its table and its page."""

import io
import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from rich.console import Console
from typer.testing import CliRunner

from decathlon_task import TASK, make_task
from layertune import LRProfile
from layertune.cli.app import app
from layertune_studies.config.demo import DemoOptions, OptionError, demo_study
from layertune_studies.config.study import load_study
from layertune_studies.engine import run as engine_run
from layertune_studies.engine.store import StudyStore
from layertune_studies.errors import DataError, FolderError
from layertune_studies.results.demo import DemoResult, run_demo

TINY = DemoOptions(
    size=(16, 24, 16), source=2, shots=2, seeds=2, held_out=1, pretrain_steps=3, steps=4, validate_every=2
)
RATES = 5
TITLES = [
    "All layers, best rate",
    "All layers, same start",
    "Last layer",
    "Bi-directional",
    "MetaLR, exact",
    "MetaLR, streaming",
]


def run(folder: Path, **changes: Any) -> tuple[DemoResult, str]:
    """The result and what the console showed."""
    console = Console(file=io.StringIO(), width=200)
    result = run_demo(replace(TINY, out=folder, **changes), console=console)
    assert isinstance(console.file, io.StringIO)
    return result, console.file.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run(tmp_path_factory.mktemp("demo") / "out")[0]


def numbers(result: DemoResult) -> list[dict[str, Any]]:
    """All that a second run must find again: everything but times."""
    rows: list[dict[str, Any]] = result.as_dict()["methods"]
    return [{name: value for name, value in row.items() if name != "step_ms"} for row in rows]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0 and must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"size": (16, 20, 16)}, "multiple of 8"),
        ({"size": (8, 16, 16)}, "at least 16"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DemoOptions(**options)


def test_without_options_the_study_is_that_of_its_file() -> None:
    study, values = demo_study(DemoOptions())
    assert study == load_study(Path(str(files("layertune_studies").joinpath("demo.yaml"))))
    assert (values["size"], values["seeds"], values["steps"], values["threads"]) == ((40, 48, 40), 2, 60, 1)


def test_options_change_the_study() -> None:
    options = DemoOptions(size=(16, 24, 32), seed=7, source=5, shots=2, seeds=3, held_out=2, pretrain_steps=9, batch=3)
    study, _ = demo_study(options)
    assert study.data.split.counts == (5 + 2 * 3, 2, 6)
    assert (study.data.reserved, study.data.labelled, study.seed, study.seeds) == (5, (2,), 7, 3)
    source = study.pretraining.data
    assert source is not None
    assert (source.size, source.split.seed, source.contrast) == ((16, 24, 32), 7, "t1")
    assert (study.pretraining.steps, study.pretraining.cycle, study.pretraining.batch) == (9, 9, 3)


def test_a_task_of_the_decathlon_is_inverted_for_pretraining() -> None:
    study, _ = demo_study(DemoOptions(data=TASK))
    assert (study.data.set, study.pretraining.task, study.pretraining.data) == ("hippocampus", "inverted", None)
    other, _ = demo_study(DemoOptions(data="Task02_Heart"))
    assert (other.data.set, other.data.folder, other.data.classes) == ("decathlon", "Task02_Heart", 3)


# The folder


@pytest.mark.parametrize("root", [None, Path("nowhere")])
def test_a_missing_task_names_its_source_and_layout(tmp_path: Path, root: Path | None) -> None:
    with pytest.raises(DataError, match=r"--root DIR or LAYERTUNE_DATA|there is no .* in nowhere") as caught:
        run(tmp_path / "out", data=TASK, root=root)
    assert "medicaldecathlon.com" in str(caught.value)
    assert "dataset.json, imagesTr and labelsTr" in str(caught.value)


def test_a_demo_that_fails_for_want_of_data_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(tmp_path / "out", data=TASK, root=None)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_refused_beside_a_running_one_leaves_its_folder(tmp_path: Path) -> None:
    _, values = demo_study(TINY)
    (tmp_path / "demo.json").write_text(json.dumps(values))
    with StudyStore(tmp_path).locked(), pytest.raises(FolderError, match="another run"):
        run(tmp_path)
    assert (tmp_path / "demo.json").is_file()


def test_other_options_are_named_and_refused(tmp_path: Path) -> None:
    _, values = demo_study(TINY)
    (tmp_path / "demo.json").write_text(json.dumps({**values, "steps": 6}))
    with pytest.raises(FolderError, match=r"other options: steps 6 \(now 4\); give another folder"):
        run(tmp_path)


def test_a_demo_of_version_0_1_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    (tmp_path / "options.json").write_text('{"steps": 4}')
    with pytest.raises(FolderError, match=r"holds a demo of layertune 0\.1, .*; give another folder with --out"):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["options.json", "pieces"]


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FolderError, match="not empty and holds no demo"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FolderError, match=r"cannot be written .*; give another folder with --out"):
        run(tmp_path / "taken" / below)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"steps": 4, "se', "cannot be read", id="cut off"),
        pytest.param(b"\xff\xfe\x00", "cannot be read", id="no text"),
        pytest.param(b"[" * 100_000, "cannot be read", id="nested without end"),
        pytest.param(b"[1, 2]", "holds no options of a demo", id="a list"),
        pytest.param(b'{"theme": "dark"}', "holds no options of a demo", id="another program's"),
    ],
)
def test_damaged_and_foreign_options_are_refused_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "demo.json").write_bytes(content)
    with pytest.raises(FolderError, match=f"demo.json {message}.*give another folder"):
        run(tmp_path)
    assert (tmp_path / "demo.json").read_bytes() == content


def test_the_command_answers_a_folder_that_it_cannot_use_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "demo.json").write_text("{")
    for out in (tmp_path / "taken", tmp_path):
        result = CliRunner().invoke(app, ["demo", "--out", str(out)])
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"layertune: {out}")


# Results


@pytest.mark.slow
def test_every_method_has_its_row(whole: DemoResult) -> None:
    assert [row.title for row in whole.rows] == ["Pre-trained, not tuned", *TITLES]
    assert len(whole.rows[0].scores) == 1
    for row in whole.rows[1:]:
        assert len(row.scores) == len(row.settings) == 2
        assert all(0 <= value <= 1 for scores in row.scores for value in scores.values())
        assert row.step_ms is not None
        assert row.step_ms > 0


@pytest.mark.slow
def test_passes_are_counted_with_the_search(whole: DemoResult) -> None:
    passes = {row.title: (row.passes, row.total_passes) for row in whole.rows[1:]}
    steps = 4
    grid = RATES * steps
    expected = [(1, grid), (1, steps), (1, grid), (1, 3 * steps), (2, 2 * steps), (1, steps)]
    assert passes == dict(zip(TITLES, expected, strict=True))


@pytest.mark.slow
def test_the_page_opens_offline_and_holds_everything(whole: DemoResult) -> None:
    page = whole.report.read_text(encoding="utf-8")
    assert not re.findall(r"<script|<link|@import|(?:src|href)=\"(?!data:|#)", page)
    assert not re.findall(r"url\((?!#)", page)
    assert page.count("<svg") == 4
    assert page.count('<img src="data:image/png;base64,') == 1
    assert "Blue: grey matter; orange: white matter." in page
    for row in whole.rows:
        for cell in filter(None, row.cells()):
            assert f"<td>{escape(cell)}</td>" in page
    assert "&lt;svg" not in page


@pytest.mark.slow
def test_the_profile_is_that_of_the_exact_method(whole: DemoResult) -> None:
    profile = LRProfile.load(whole.profile)
    assert profile.steps[-1] == 4
    assert len(profile.layers) == 7


@pytest.mark.slow
def test_json_holds_the_table(whole: DemoResult) -> None:
    held = json.loads(json.dumps(whole.as_dict()))
    assert [row["title"] for row in held["methods"]] == [row.title for row in whole.rows]
    keys = ["pretrained", "all", "start", "last", "bidirectional", "metalr", "streaming"]
    assert [row["key"] for row in held["methods"]] == keys
    assert held["methods"][1]["scores"][0]["dice"] == whole.rows[1].scores[0]["dice"]
    assert (held["options"]["steps"], held["options"]["data"]) == (4, "mni152")


@pytest.mark.slow
def test_the_table_shows_each_row(whole: DemoResult) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(whole.table())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    for row in whole.rows:
        (line,) = [line for line in lines if line.strip().startswith(row.title)]
        assert all(cell in line for cell in row.cells()[:4])


@pytest.mark.slow
def test_interrupted_it_ends_with_the_same_numbers(
    whole: DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trial, done = engine_run.run_trial, list[str]()

    def stopping(*args: Any) -> dict[str, Any]:
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(args[1].name(args[0]))
        return run_trial(*args)

    monkeypatch.setattr(engine_run, "run_trial", stopping)
    console = Console(file=io.StringIO(), width=60)
    with pytest.raises(SystemExit) as stopped:
        run_demo(replace(TINY, out=tmp_path / "out"), console=console)
    assert (stopped.value.code, stopped.value.__suppress_context__) == (130, True)
    assert isinstance(console.file, io.StringIO)
    last = console.file.getvalue().splitlines()[-1]
    assert last == f"Interrupted. What is finished lies in {tmp_path / 'out'}; the same command goes on from there."
    monkeypatch.setattr(engine_run, "run_trial", run_trial)
    assert numbers(run(tmp_path / "out")[0]) == numbers(whole)


@pytest.mark.slow
def test_a_second_start_trains_nothing(whole: DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_run, "run_trial", lambda *_: pytest.fail("a finished trial was trained again"))
    again, _ = run(whole.report.parent)
    assert again.as_dict() == {**whole.as_dict(), "seconds": again.as_dict()["seconds"]}


@pytest.mark.slow
def test_real_looking_cases_are_tuned_too(tmp_path: Path) -> None:
    root = make_task(tmp_path / "data", cases=10, size=(16, 16, 16), task="Task02_Heart").parent
    options = replace(TINY, size=(16, 16, 16), seeds=1, steps=1, pretrain_steps=1)
    result = run_demo(
        replace(options, data="Task02_Heart", root=root, out=tmp_path / "out"), console=Console(quiet=True)
    )
    assert len(result.rows) == 7
    page = result.report.read_text(encoding="utf-8")
    assert "The cases are those of Task02_Heart; the source is inverted." in page
    assert "Blue: class 1; orange: class 2." in page

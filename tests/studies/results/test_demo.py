import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from rich.console import Console

from layertune import LRProfile
from layertune_studies import demo_work
from layertune_studies.demo import DemoOptions, DemoResult, run_demo
from layertune_studies.demo_methods import LRS
from layertune_studies.errors import FolderError

pytestmark = pytest.mark.slow
TINY = DemoOptions(
    size=(16, 24, 16), source=2, shots=2, seeds=2, held_out=1, pretrain_steps=3, steps=4, checkpoint_every=2
)
TITLES = [
    "All layers, best rate",
    "All layers, same start",
    "Last layer",
    "Bi-directional",
    "MetaLR, exact",
    "MetaLR, streaming",
]


def _run(folder: Path) -> tuple[DemoResult, str]:
    """The result and what the console showed."""
    console = Console(file=io.StringIO(), width=200)
    result = run_demo(replace(TINY, out=folder), console=console)
    assert isinstance(console.file, io.StringIO)
    return result, console.file.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return _run(tmp_path_factory.mktemp("demo") / "out")[0]


def _numbers(result: DemoResult) -> list[dict[str, Any]]:
    """All that a second run must find again: everything but times."""
    rows: list[dict[str, Any]] = result.as_dict()["methods"]
    return [{name: value for name, value in row.items() if name != "step_ms"} for row in rows]


def test_every_method_has_its_row(whole: DemoResult) -> None:
    assert [row.title for row in whole.rows] == ["Pre-trained, not tuned", *TITLES]
    for row in whole.rows[1:]:
        assert len(row.scores) == len(row.settings) == 2
        assert all(0 <= value <= 1 for scores in row.scores for value in vars(scores).values())
        assert row.step_ms is not None
        assert row.step_ms > 0


def test_passes_are_counted_with_the_search(whole: DemoResult) -> None:
    passes = {row.title: (row.passes, row.total_passes) for row in whole.rows[1:]}
    grid = len(LRS) * TINY.steps
    expected = [(1, grid), (1, TINY.steps), (1, grid), (1, 3 * TINY.steps), (2, 2 * TINY.steps), (1, TINY.steps)]
    assert passes == dict(zip(TITLES, expected, strict=True))


def test_the_page_opens_offline_and_holds_everything(whole: DemoResult) -> None:
    page = whole.report.read_text(encoding="utf-8")
    assert not re.findall(r"<script|<link|@import|(?:src|href)=\"(?!data:|#)", page)
    assert not re.findall(r"url\((?!#)", page)
    assert page.count("<svg") == 4
    assert page.count('<img src="data:image/png;base64,') == 1
    for row in whole.rows:
        for cell in filter(None, row.cells()):
            assert f"<td>{escape(cell)}</td>" in page
    assert "&lt;svg" not in page


def test_the_profile_is_that_of_the_exact_method(whole: DemoResult) -> None:
    profile = LRProfile.load(whole.profile)
    assert profile.steps[-1] == TINY.steps
    assert len(profile.layers) == 7


def test_json_holds_the_table(whole: DemoResult) -> None:
    held = json.loads(json.dumps(whole.as_dict()))
    assert [row["title"] for row in held["methods"]] == [row.title for row in whole.rows]
    assert held["methods"][1]["scores"][0]["dice"] == whole.rows[1].scores[0].dice
    assert held["options"]["steps"] == TINY.steps


def test_the_table_shows_each_row(whole: DemoResult) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(whole.table())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    for row in whole.rows:
        (line,) = [line for line in lines if line.strip().startswith(row.title)]
        assert all(cell in line for cell in row.cells()[:4])


def test_interrupted_twice_it_ends_with_the_same_numbers(
    whole: DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = demo_work.train
    for stop_in, stop_at in (("pretraining", 2), ("exact-0.1-seed0", 3)):

        def stopping(*args: Any, stop_in: str = stop_in, stop_at: int = stop_at, **kwargs: Any) -> None:
            def on_step(done: int) -> None:
                if done == stop_at and kwargs["checkpoint"] == f"{stop_in}.checkpoint":
                    raise KeyboardInterrupt

            train(*args, **{**kwargs, "on_step": on_step})

        monkeypatch.setattr(demo_work, "train", stopping)
        console = Console(file=io.StringIO(), width=60)
        with pytest.raises(SystemExit) as stopped:
            run_demo(replace(TINY, out=tmp_path / "out"), console=console)
        assert stopped.value.code == 130
        assert stopped.value.__suppress_context__
        assert isinstance(console.file, io.StringIO)
        last = console.file.getvalue().splitlines()[-1]
        assert last == f"Interrupted. What is finished lies in {tmp_path / 'out'}; the same command goes on from there."
    monkeypatch.setattr(demo_work, "train", train)
    assert _numbers(_run(tmp_path / "out")[0]) == _numbers(whole)


def test_a_second_start_trains_nothing(whole: DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished piece was trained again")

    monkeypatch.setattr(demo_work, "train", trained)
    again, _ = _run(whole.options.out)
    assert again.as_dict() == {**whole.as_dict(), "seconds": again.as_dict()["seconds"]}


def test_a_folder_of_other_options_is_refused(whole: DemoResult) -> None:
    with pytest.raises(FolderError, match=r"other options: steps 4 \(now 6\)"):
        run_demo(replace(whole.options, steps=6), console=Console(file=io.StringIO()))

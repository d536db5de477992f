"""The commands that show a study's results, before there are any."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from layertune.cli.app import app
from study_runs import write_study


@pytest.mark.parametrize("command", [["table"], ["page"], ["plot", "heat-map"]])
def test_before_any_run_they_say_to_run_the_study_and_make_no_folder(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAYERTUNE_DATA", raising=False)
    config = write_study(tmp_path / "study.yaml")
    name, *others = command
    result = CliRunner().invoke(app, ["study", name, str(config), *others, "--out", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"there are no results of small in {tmp_path}/out; run `layertune study run" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]

"""`layertune nnunet`: the folder of the trainers, and nnU-Net's training command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from layertune.cli import app as cli
from layertune.hosts.plugin import Plugin
from layertune_nnunet import commands
from layertune_nnunet.tools.trainer_path import FOLDER, VARIABLE, trainer_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["nnunet", *arguments])


def mistake(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of nnUNetv2_train. It records how it was called, and exits as the file `end` says."""
    written = tmp_path / "nnUNetv2_train"
    written.write_text(f'#!/bin/sh\nprintf "%s\\n" "${VARIABLE}" "$@" > "{tmp_path}/called"\n. "{tmp_path}/end"\n')
    written.chmod(0o755)
    (tmp_path / "end").write_text("exit 0\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name in commands.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def test_the_folder_of_the_trainers_is_printed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    result = run("trainers")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{FOLDER}\n", "")
    assert json.loads(run("trainers", "--json").stdout) == {VARIABLE: str(FOLDER)}
    assert [path.suffix for path in FOLDER.iterdir() if path.name != "__pycache__"] == [".py"]


def test_folders_in_the_variable_stay_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["/mine", "", "/yours"]))
    printed = run("trainers").stdout.strip()
    assert printed.split(os.pathsep) == ["/mine", "/yours", str(FOLDER)]
    monkeypatch.setenv(VARIABLE, printed)
    assert run("trainers").stdout.strip() == printed
    assert trainer_path("") == str(FOLDER)


@pytest.mark.parametrize("command", [["trainers"], ["train", "-h"], ["portable", "model"]])
def test_the_error_for_a_missing_nnunet_says_how_to_install_it(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Plugin(name="nnU-Net", distribution="no-such-thing", lowest="2.8", module="nnunetv2", extra="nnunet")
    monkeypatch.setattr(commands, "PLUGIN", absent)
    assert "pip install 'layertune[nnunet]'" in mistake(*command)


@pytest.mark.parametrize(
    "arguments",
    [
        ["4", "3d_fullres", "0", "-tr", "nnUNetTrainerMetaLR_hlr0p05", "-pretrained_weights", "a b.pth", "--c"],
        ["4", "2d", "all", "--npz", "-device", "cpu", "--val_best"],
        ["-h"],
        ["--help", "-tr", "nnUNetTrainerMetaLR_wrong"],
        ["4", "2d", "0", "-tr"],
        [],
    ],
)
def test_all_arguments_reach_nnunet(arguments: list[str], program: Path) -> None:
    assert run("train", *arguments).exit_code == 0
    assert (program / "called").read_text().splitlines() == [str(FOLDER), *arguments]


@pytest.mark.parametrize(("end", "code"), [("exit 1", 1), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_the_exit_code_is_nnunets(end: str, code: int, program: Path) -> None:
    (program / "end").write_text(f"{end}\n")
    assert run("train", "4", "2d", "0").exit_code == code


def test_variables_that_are_not_set_are_named_before_anything_starts(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_results")
    assert "nnUNet_results not set" in mistake("train", "4", "2d", "0")
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "nnUNet_preprocessed and nnUNet_results not set" in mistake("train", "4", "2d", "0")
    assert not (program / "called").exists()


@pytest.mark.parametrize("option", [["-tr", "{}"], ["-tr={}"], ["-tr", "nnUNetTrainer", "-tr", "{}"]])
def test_a_trainers_name_that_cannot_be_read_is_one_line_before_anything_starts(
    option: list[str], program: Path
) -> None:
    name = "nnUNetTrainerMetaLR_hrl0p05"
    line = mistake("train", "4", "3d_fullres", "0", *(part.format(name) for part in option))
    assert f"cannot read {name}: '_hrl0p05' is not one of its suffixes" in line
    assert "_hlr0p05: step size of the learning rates 0.05;" in line
    assert not (program / "called").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nnUNetTrainerMetaLR_additive", 'rule="additive" needs a hyper_lr'),
        ("nnUNetTrainerAlchemyMetaLRStreaming_min1em2_max1em3", "max_lr must be above min_lr = 0.01, not 0.001"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_before_anything_starts(name: str, expected: str, program: Path) -> None:
    assert expected in mistake("train", "4", "3d_fullres", "0", "-tr", name)
    assert not (program / "called").exists()


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerMetaLRMine_hlr7", "nnUNetTrainer_250epochs", "Mine_nnUNetTrainerMetaLR_x"]
)
def test_other_trainers_are_left_to_nnunet(name: str, program: Path) -> None:
    assert run("train", "4", "2d", "0", "-tr", name).exit_code == 0
    assert name in (program / "called").read_text()


def test_a_program_that_is_not_there_is_named(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program / "nnUNetv2_train").unlink()
    monkeypatch.setenv("PATH", str(program))
    assert "nnUNetv2_train is neither beside" in mistake("train", "4", "2d", "0")


@pytest.mark.slow
def test_nnunets_own_command_answers(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("layertune")), "nnunet", "train", "4"]
    variables = {**os.environ, **dict.fromkeys(commands.VARIABLES, str(tmp_path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=variables)
    assert done.returncode == 2
    assert "-pretrained_weights" in done.stderr
    assert "nnUNetv2_train: error: the following arguments are required: configuration, fold" in done.stderr


def test_the_command_line_lists_them_without_nnunet() -> None:
    listed = run("--help").stdout
    assert all(name in listed for name in ("trainers", "train", "import", "portable", "gammas"))

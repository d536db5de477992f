"""`layertune nnunet gammas`: the gammas of a checkpoint, in the network of its plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from torch import nn
from typer.testing import CliRunner, Result

from layertune.cli import app as cli
from nnunet_runs import make

SMALL = 0.001


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["nnunet", "gammas", *map(str, arguments)])


def mistake(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


def saved(trainer: type, kind: type[nn.Module]) -> tuple[Any, Path]:
    """Make a trainer of nnU-Net with one small gamma in each norm, and save its checkpoint."""
    made = make(trainer)
    made.initialize()
    with torch.no_grad():
        for norm in made.network.modules():
            if isinstance(norm, kind):
                norm.weight.uniform_(0.5, 1.5)
                norm.weight[1] = -SMALL
    file = Path(made.output_folder) / "checkpoint_final.pth"
    made.save_checkpoint(str(file))
    return made, file


@pytest.mark.usefixtures("nnunet")
@pytest.mark.parametrize(
    ("trainer", "kind"),
    [
        (nnUNetTrainer, nn.InstanceNorm3d),
        pytest.param(nnUNetTrainerBN, nn.BatchNorm3d, marks=pytest.mark.slow),  # nnU-Net's look-up takes its time
    ],
)
def test_gammas_are_those_of_the_checkpoint(trainer: type, kind: type[nn.Module], tmp_path: Path) -> None:
    made, file = saved(trainer, kind)
    found = json.loads(run(file, "--json", "--figure", tmp_path / "gammas.png").stdout)
    assert found["model"] == trainer.__name__
    norms = {name: norm for name, norm in made.network.named_modules() if isinstance(norm, kind)}
    rows = {row["name"]: row for row in found["norms"]}
    assert len(rows) == 5
    for name, row in rows.items():
        gamma = norms[name].weight.detach()
        assert row["kernels_of"] == name.replace(".norm", ".conv")
        assert (row["count"], row["small"]) == (len(gamma), 1)
        assert row["mean"] == pytest.approx(gamma.mean().item(), abs=1e-6)
        assert row["smallest"] == pytest.approx(SMALL)
    assert (tmp_path / "gammas.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("nnunet")
def test_a_folder_with_one_checkpoint_is_accepted() -> None:
    made, file = saved(nnUNetTrainer, nn.InstanceNorm3d)
    shown = run(made.output_folder_base, "--threshold", "0.0001").stdout
    assert "0 of 32 kernels have a |gamma| below 0.0001." in shown
    other = file.parent.with_name("fold_1")
    other.mkdir()
    torch.save({}, other / file.name)
    assert "found fold_0/checkpoint_final.pth, fold_1/checkpoint_final.pth; name one" in mistake(
        made.output_folder_base
    )


def test_a_file_that_is_not_a_checkpoint_of_a_training_is_refused(tmp_path: Path) -> None:
    assert "found none; name one checkpoint" in mistake(tmp_path)
    assert "nowhere.pth is not there" in mistake(tmp_path / "nowhere.pth")
    torch.save({"network_weights": {"a.weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    assert "layertune gammas FILE --model NETWORK" in mistake(tmp_path / "weights.pth")


class Code:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"network_weights": {}, "trainer_name": Code()}, tmp_path / "code.pth")
    assert "would run code" in mistake(tmp_path / "code.pth")
    assert "this ran" not in capsys.readouterr().out

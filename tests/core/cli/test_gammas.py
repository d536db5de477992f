"""`layertune gammas` and `layertune rank` as a user meets them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from layertune.cli import app as cli

SOURCE = """
import torch
from torch import nn
from layertune_studies.ranking import RankTask

class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(
            nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 3, 3), nn.InstanceNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )

def task(cases=8, better=True):
    x, y = torch.randn(cases, 1, 8, 8), torch.randint(3, (cases,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)
    bias = lambda net: net[3].bias[0].item()
    return RankTask(batches=loader, loss=nn.functional.cross_entropy, evaluate=bias, higher_is_better=better)

def empty():
    return RankTask(batches=[], loss=None, evaluate=None)

def no_task():
    return 3
"""


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own module and three checkpoints in the current folder."""
    (tmp_path / "own_rank.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rank", raising=False)
    for name, bias in {"a": 0.1, "b": 0.3, "c": 0.2}.items():
        net = network()
        nn.init.constant_(net[3].bias, bias)
        with torch.no_grad():
            net[1].weight.copy_(torch.tensor([0.01, 0.5, -0.02, 1.5]))
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def answer(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def mistake(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


OWN = ("--model", "own_rank:Net", "--input", "2,1,8,8")


@pytest.mark.usefixtures("folder")
def test_gammas_of_a_checkpoint() -> None:
    found = answer("gammas", "a.pt", *OWN)
    (norm,) = found["norms"]
    assert (norm["name"], norm["kernels_of"], norm["count"], norm["small"]) == ("1", "0", 4, 2)
    assert norm["mean"] == pytest.approx((0.01 + 0.5 - 0.02 + 1.5) / 4)
    assert norm["smallest"] == pytest.approx(0.01)
    assert found["loaded"]["missing"] == {}
    assert answer("gammas", "a.pt", *OWN, "--threshold", "0.6")["norms"][0]["small"] == 3


@pytest.mark.usefixtures("folder")
def test_gammas_as_a_table_and_a_figure() -> None:
    result = run("gammas", "a.pt", *OWN, "--figure", "gammas.png")
    assert result.exit_code == 0, result.output
    assert "2 of 4 kernels have a |gamma| below 0.05." in result.stdout
    assert "Figure: gammas.png" in result.stdout
    assert Path("gammas.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("folder")
def test_gammas_of_norms_that_scale_no_kernels() -> None:
    source = Path("own_rank.py").read_text()
    Path("own_rank.py").write_text(source.replace("super().__init__(", "super().__init__(nn.BatchNorm2d(1), "))
    net = nn.Sequential(nn.BatchNorm2d(1), *network())
    torch.save(net.state_dict(), "d.pt")
    found = answer("gammas", "d.pt", *OWN)
    assert [norm["kernels_of"] for norm in found["norms"]] == [None, "1"]
    assert "pre-activation" in found["norms"][0]["reason"]
    assert "1 norms scale no kernels" in run("gammas", "d.pt", *OWN).stdout


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"0.weight": torch.zeros(4, 1, 3, 3)}, id="a part"),
        pytest.param({"other": torch.zeros(2)}, id="nothing that fits"),
    ],
)
def test_weights_of_another_network_are_answered_with_options_that_the_command_has(state: dict) -> None:
    torch.save(state, "other.pt")
    line = mistake("gammas", "other.pt", *OWN)
    assert "with --model, and its arguments with --arg key=value" in line
    assert not any(option in line for option in ("prefix", "allow", "rename", "adapt"))


@pytest.mark.usefixtures("folder")
def test_mistakes_with_gammas() -> None:
    torch.save({"0.weight": torch.randn(4, 1, 3, 3)}, "part.pt")
    assert "lacks the gammas of 1 norms (1)" in mistake("gammas", "part.pt", *OWN)
    assert "nothing.pt" in mistake("gammas", "nothing.pt", *OWN)
    assert "cannot be written" in mistake("gammas", "a.pt", *OWN, "--figure", "no/folder.png")
    assert "cannot be written" in mistake("gammas", "a.pt", *OWN, "--figure", "gammas.wav")
    state = torch.load("a.pt", weights_only=True)
    state["1.weight"][0] = float("nan")
    torch.save(state, "nan.pt")
    assert "NaN or infinite values in 1.weight (1 of 4)" in mistake("gammas", "nan.pt", *OWN)
    assert "has no normalisation layer" in mistake(
        "gammas", "a.pt", "--model", "torch.nn:Conv2d", "--input", "2,1,8,8",
        "--arg", "in_channels=1", "--arg", "out_channels=4", "--arg", "kernel_size=3", "--arg", "bias=false",
    )  # fmt: skip


def study(**changes: object) -> str:
    settings = {"network": "own_rank:Net", "task": "own_rank:task", "budget": 2, **changes}
    Path("study.yaml").write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return "study.yaml"


@pytest.mark.usefixtures("folder")
def test_a_ranking() -> None:
    found = answer("rank", "a.pt", "b.pt", "c.pt", "--study", study(full_budget=9))
    assert [row["name"] for row in found["candidates"]] == ["b.pt", "c.pt", "a.pt"]
    assert [row["metric"] for row in found["candidates"]] == pytest.approx([0.3, 0.2, 0.1])
    assert (found["spent"], found["full_budget"]) == (6, 27)
    assert found["seconds"] > 0
    shown = run("rank", "a.pt", "b.pt", "--study", study()).stdout
    assert "took 4 units of budget" in shown


@pytest.mark.usefixtures("folder")
def test_a_ranking_by_a_loss_with_a_head_and_halving() -> None:
    changes = {"task_arguments": {"better": False, "cases": 4}, "head": True, "halving": 2, "optimizer": "sgd"}
    found = answer("rank", "a.pt", "b.pt", "c.pt", "--study", study(**changes, lr=1e-6))
    assert [row["name"] for row in found["candidates"]] == ["a.pt", "c.pt", "b.pt"]
    assert found["spent"] == 3 * 2 + 2 * 4
    assert found["candidates"][0]["metric"] != pytest.approx(0.1, abs=1e-12), "the head trained too"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"budgett": 3}, "budgett is no key of a ranking; did you mean budget?", id="nearest"),
        pytest.param({"budget": None}, "budget is missing", id="missing"),
        pytest.param({"budget": 0}, "budget: Input should be greater than or equal to 1", id="range"),
        pytest.param({"optimizer": "lion"}, "optimizer: Input should be 'adam'", id="optimizer"),
        pytest.param({"task": "mni"}, "task 'mni' is neither", id="task"),
        pytest.param({"task": "mni152", "task_arguments": {"sizes": 3}}, "unexpected keyword", id="arguments"),
        pytest.param({"task": "own_rank:tasks"}, "the nearest: ", id="no such function"),
        pytest.param({"task": "own_rank:no_task"}, "RankTask, not int", id="not a task"),
        pytest.param({"task": "own_rank:empty"}, "no batch", id="no batch"),
        pytest.param({"network": "resnet81"}, "resnet18", id="no such network"),
        pytest.param({"task": "Task04_Hippocampus", "task_arguments": {"root": "nowhere"}}, "nowhere", id="no data"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_mistakes_in_a_study(changes: dict[str, object], expected: str) -> None:
    assert expected in mistake("rank", "a.pt", "--study", study(**changes))


@pytest.mark.usefixtures("folder")
def test_mistakes_with_files() -> None:
    Path("list.yaml").write_text("- a\n")
    Path("broken.yaml").write_text("a: [\n")
    assert "a ranking is a mapping" in mistake("rank", "a.pt", "--study", "list.yaml")
    assert "is not YAML" in mistake("rank", "a.pt", "--study", "broken.yaml")
    assert "cannot be read" in mistake("rank", "a.pt", "--study", "none.yaml")
    torch.save(nn.Linear(2, 2).state_dict(), "other.pt")
    assert "other.pt" in mistake("rank", "a.pt", "other.pt", "--study", study())


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_task_of_the_demo() -> None:
    from monai.networks.nets import UNet

    arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}
    torch.save(UNet(**arguments, norm="batch").state_dict(), "unet.pt")
    settings = {"size": [16, 16, 16], "shots": 1, "held_out": 1}
    changes = {"network": "UNet", "arguments": {**arguments, "norm": "batch"}, "task": "mni152"}
    found = answer("rank", "unet.pt", "--study", study(**changes, task_arguments=settings, budget=1))
    assert 0 <= found["candidates"][0]["metric"] <= 1

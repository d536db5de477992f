"""The command line as a user meets it: exit codes, one line for a mistake, clean JSON."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import layertune
from layertune.cli import app as cli
from layertune.errors import ModelError
from layertune.hosts.networks import named_network, parse_arguments, parse_shape
from layertune.hosts.plugin import Plugin, PluginStatus

NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=4, name="plain"):
        super().__init__()
        self.add_module("[red]stem", nn.Conv2d(1, width, 3))
        self.add_module("flat", nn.Flatten())
        self.add_module("head", nn.Linear(width * 36, 2))
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.flat(self[0](x)))

def loud():
    print("hello")
    return Net()

def no_net():
    return 3

def broken():
    raise RuntimeError("two\\nlines")
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own module in the current folder; each test imports it anew."""
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return "own_nets"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def answer(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def mistake(*arguments: str) -> str:
    """The one line that a mistake gives."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return str(line)


def test_layers_of_a_module_of_ones_own(nets: str) -> None:
    found = answer("layers", f"{nets}:Net", "--input", "2,1,8,8", "--arg", "width=8")
    assert found["input"] == [2, 1, 8, 8]
    assert found["arguments"] == {"width": 8}
    assert [(layer["name"], layer["role"], layer["depth_I1"], layer["depth_I2"]) for layer in found["layers"]] == [
        ("[red]stem", "encoder", 1, None),
        ("head", "head", 2, None),
    ]
    assert found["layers"][0]["count"] == 8 * 9 + 8
    assert sum(layer["count"] for layer in found["layers"]) == 8 * 9 + 8 + 2 * 8 * 36 + 2 + 6
    assert found["unused"] == ["spare.weight", "spare.bias"]


def test_a_table_shows_names_as_they_are_and_reports_what_did_not_run(nets: str) -> None:
    result = run("layers", f"{nets}:Net", "--input", "2,1,8,8")
    assert result.exit_code == 0
    assert "[red]stem" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if "[red]stem" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == ["encoder", "0", "1", "-", "40"]
    assert "input 2,1,8,8 " in result.stdout  # as --input takes it
    assert "I1 in order of execution, I2 from the top of a U-Net" in result.stdout
    assert "2 parameters did not run" in result.stdout
    assert "  spare.weight\n" in result.stdout


def test_a_u_has_depths_under_both_readings() -> None:
    arguments = ["channels=(4,8,16)", "strides=[2,2]", "norm=batch"]
    found = answer("layers", "UNet", "--input", "2,1,32,32", *(x for a in arguments for x in ("--arg", a)))
    assert found["arguments"]["spatial_dims"] == 2
    assert found["arguments"]["norm"] == "batch"
    depths = [(layer["role"], layer["depth_I1"], layer["depth_I2"]) for layer in found["layers"]]
    assert [i1 for _, i1, _ in depths] == list(range(1, len(depths) + 1))
    assert depths[0][2] < depths[1][2], "I2 rises along the encoder"
    decoder = [i2 for role, _, i2 in depths if role == "decoder"]
    assert decoder == sorted(decoder, reverse=True)
    assert depths[-1][2] == max(i2 for _, _, i2 in depths)


def test_a_timm_model_is_mapped_at_its_own_input_size() -> None:
    found = answer("layers", "resnet18")
    assert found["input"] == [2, 3, 224, 224]
    assert len(found["layers"]) == 10
    assert sum(layer["count"] for layer in found["layers"]) == 11_689_512  # torchvision's own count of ResNet-18


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        pytest.param("resnet18", ["in_chans=1"], [2, 1, 224, 224], id="channels"),
        pytest.param("resnet18", ["in_chans=null"], [2, 3, 224, 224], id="timm drops null"),
        pytest.param("vit_tiny_patch16_224", ["in_chans=1", "img_size=32"], [2, 1, 32, 32], id="sides"),
        pytest.param("vit_tiny_patch16_224", ["img_size=(32, 48)"], [2, 3, 32, 48], id="two sides"),
        pytest.param("tresnet_m", ["in_chans=1"], [2, 1, 224, 224], id="pixels are folded before the stem"),
    ],
)
def test_the_input_follows_what_a_timm_model_is_made_with(
    model: str, arguments: list[str], expected: list[int]
) -> None:
    found = answer("layers", model, *(x for a in arguments for x in ("--arg", a)))
    assert found["input"] == expected
    assert len(found["layers"]) > 1


def test_what_a_factory_prints_does_not_reach_standard_output(nets: str) -> None:
    result = run("layers", f"{nets}:loud", "--input", "2,1,8,8", "--json")
    assert json.loads(result.stdout)["model"] == "own_nets:loud"
    assert "hello" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["own_nets:Net"], "give its shape, batch first", id="no shape"),
        pytest.param(["own_nets:Net", "--input", "2,x"], "whole numbers above 0", id="not a shape"),
        pytest.param(["own_nets:Net", "--input", "2,3,8,8"], "refused the example input", id="wrong shape"),
        pytest.param(["own_nets:Nets", "--input", "2,1,8,8"], "the nearest: Net", id="unknown factory"),
        pytest.param(["own_net:Net", "--input", "2,1,8,8"], "cannot be imported", id="unknown module"),
        pytest.param(["own_nets:no_net", "--input", "2,1,8,8"], "made a int", id="not a network"),
        pytest.param(["own_nets:broken", "--input", "2,1,8,8"], "two lines", id="fails"),
        pytest.param(["own_nets:Net", "--input", "2,1,8,8", "--arg", "depth=3"], "unexpected", id="no such argument"),
        pytest.param(["own_nets:Net", "--input", "2,1,8,8", "--arg", "depth"], "key=value", id="no pair"),
    ],
)
@pytest.mark.usefixtures("nets")
def test_a_mistake_gives_one_line_and_exit_code_2(arguments: list[str], expected: str) -> None:
    assert expected in mistake("layers", *arguments)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert "resnet18" in mistake("layers", "resnet81")
    assert "UNETR" in mistake("layers", "UNETRR")


@pytest.mark.parametrize("arguments", [["layers"], ["nothing"], ["bench", "step", "--repeats", "0"]])
def test_a_wrong_call_exits_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize("command", ["step", "trace"])
def test_an_unknown_network_of_the_benchmark_lists_the_known_ones(command: str) -> None:
    result = run("bench", command, "--network", "lenet")
    assert result.exit_code == 2
    assert "resnet18" in result.stderr


def test_without_hosts_a_name_is_answered_with_the_install_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layertune.hosts.plugin._installed", lambda _: None)
    line = mistake("layers", "resnet18")
    assert "pip install 'layertune[timm]'" in line
    assert "pip install 'layertune[monai]'" in line


def without_monai(*_: object, **__: object) -> None:
    raise ModuleNotFoundError("No module named 'monai'", name="monai")


@pytest.mark.parametrize("when", ["imported", "run"])
def test_a_package_that_a_study_lacks_is_answered_with_the_install_line(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ModuleType("layertune_studies.bench.step")
    if when == "imported":
        study.__getattr__ = without_monai
    else:
        study.bench_step = without_monai
    monkeypatch.setitem(sys.modules, "layertune_studies.bench.step", study)
    monkeypatch.setattr("layertune_studies.bench.step", study, raising=False)
    line = mistake("bench", "step", "--network", "resnet18")
    assert "monai" in line
    assert "pip install 'layertune[studies]'" in line


def test_plugins_show_what_can_be_used_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Plugin(name="Host", distribution="a-host", lowest="1", module="a_host", extra="host")
    rows = [
        PluginStatus(name="Host", plugin=host, installed="1.2", reason=None),
        PluginStatus(name="Other", plugin=None, installed=None, reason="[bold]broken"),
    ]
    monkeypatch.setattr("layertune.cli.app.plugins", lambda: rows)
    assert answer("plugins") == [
        {"name": "Host", "installed": "1.2", "usable": True, "reason": None},
        {"name": "Other", "installed": None, "usable": False, "reason": "[bold]broken"},
    ]
    shown = run("plugins").stdout
    assert "1.2" in shown
    assert "[bold]broken" in shown


def test_the_version_is_the_package_s() -> None:
    assert run("--version").stdout.strip() == layertune.__version__


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    """The factory sends the signal itself, so that it comes at a known moment."""
    source = f"import os, signal\ndef make():\n    os.kill(os.getpid(), {int(signal.SIGINT)})\n"
    (tmp_path / "stopped.py").write_text(source)
    # A shell lets what it starts in the background ignore the signal.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from layertune.cli import main; main()"
    command = [sys.executable, "-c", code, "layers", "stopped:make", "--input", "1,1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("text", ["", "2,,3", "0,1", "-1,2", "2.5", "²"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="whole numbers"):
        parse_shape(text)


def test_arguments_are_read_and_never_run() -> None:
    assert parse_arguments(["a=__import__('os')", "b=None", "c=null", "d={'k': [1]}", "e=x=y", "f="]) == {
        "a": "__import__('os')",
        "b": None,
        "c": None,
        "d": {"k": [1]},
        "e": "x=y",
        "f": "",
    }


def test_the_current_folder_is_on_the_path_only_while_a_factory_is_imported(nets: str) -> None:
    before = list(sys.path)
    named_network(f"{nets}:Net", shape=(2, 1, 8, 8))
    assert sys.path == before


@pytest.mark.parametrize("shape", ["2,3,99999999,99999999", f"{10**30},3"])
def test_an_input_that_is_too_large_is_one_line(shape: str) -> None:
    line = mistake("layers", "torch.nn:Linear", "--input", shape, "--arg", "in_features=3", "--arg", "out_features=1")
    assert "cannot be made on this machine; give a smaller --input" in line


def test_a_name_with_an_escape_sequence_does_not_reach_the_terminal() -> None:
    line = mistake("layers", "no_such_module_\x1b[31m:factory")
    assert "\x1b" not in line
    assert "\\x1b[31m" in line


def test_a_closed_standard_output_is_one_line_and_exit_code_2() -> None:
    command = f"{sys.executable} -c 'from layertune.cli import main; main()' plugins >&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "standard output is closed" in result.stderr

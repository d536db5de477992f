"""Tensors of TorchScript archives, read without running their code."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from layertune import WeightsError, load_weights, read_weights
from small_networks import SmallResNet, SmallUNet, image

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Plain(nn.Module):
    """A network with what archives hold besides weights: lists, dicts, constants, and a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.tied = nn.Linear(2, 3)
        self.tied.weight = self.linear.weight
        self.register_buffer("halves", torch.ones(2, 3, dtype=torch.float16).t())
        self.register_buffer("nothing", torch.zeros(0))
        self.plain = torch.full((7,), 5.0)
        self.names, self.sizes, self.numbers = ["a", "b"], {"a": 1}, [1.5, 2.5]

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(x) + self.linear(x) + self.plain[0] + self.sizes["a"] + len(self.names) + self.numbers[0]


def scripted(network: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.script(network)


def traced(network: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.trace(network.eval(), image())


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], torch.jit.ScriptModule]]] = {
    "MONAI's UNet": (lambda: UNet(2, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch"), scripted),
    "a traced U-Net": (SmallUNet, traced),
    "a ResNet": (SmallResNet, scripted),
    "other values": (Plain, scripted),
}


@pytest.mark.parametrize("kind", CASES)
def test_an_archive_gives_the_state_dict_of_its_module(kind: str, tmp_path: Path) -> None:
    make, compiled = CASES[kind]
    network = make()
    file = tmp_path / "model.ts"
    # MONAI's bundles keep their metadata in the archive.
    torch.jit.save(compiled(network), str(file), _extra_files={"metadata.json": "{}", "inference": "a"})
    found, expected = read_weights(file), torch.jit.load(str(file)).state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert not load_weights(make(), found).missing


def test_names_of_one_tensor_share_it(tmp_path: Path) -> None:
    torch.jit.save(scripted(Plain()), str(tmp_path / "model.ts"))
    found = read_weights(tmp_path / "model.ts")
    assert found["tied.weight"].data_ptr() == found["linear.weight"].data_ptr()


def test_a_frozen_archive_says_where_its_weights_are(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.freeze(scripted(nn.Linear(2, 2).eval())), str(tmp_path / "model.ts"))
    with pytest.raises(WeightsError, match=r"\.ts: it is a TorchScript archive without named weights; torch\.jit"):
        read_weights(tmp_path / "model.ts")


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 5])
def test_an_archive_with_other_instructions_runs_nothing(protocol: int, tmp_path: Path) -> None:
    file, trap = tmp_path / "model.ts", tmp_path / "trap"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Runs(trap), protocol=protocol))
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(WeightsError, match=r"model\.ts is damaged, or no file of weights"):
        read_weights(file)
    assert not trap.exists()


def replaced(file: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for entry, old in entries.items():
            archive.writestr(entry, content if entry.endswith(name) else old)


def test_code_of_an_archive_is_never_run(tmp_path: Path) -> None:
    """Also not where it is no code at all."""
    file = tmp_path / "model.ts"
    torch.jit.save(scripted(nn.Linear(2, 2)), str(file))
    expected = torch.jit.load(str(file)).state_dict()
    replaced(file, ".py", b"import os; os.abort()")
    assert torch.equal(read_weights(file)["weight"], expected["weight"])


def test_numbers_that_are_too_few_are_damage(tmp_path: Path) -> None:
    file = tmp_path / "model.ts"
    torch.jit.save(scripted(nn.Linear(2, 2)), str(file))
    replaced(file, "data/0", b"1234")
    with pytest.raises(WeightsError, match=r"is damaged, or no file of weights \(ValueError: 0 holds 4 bytes\)"):
        read_weights(file)

"""Files of weights as hosts write them, and files that are none."""

import argparse
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from layertune import WeightsError, read_weights

TENSORS = {"conv.weight": torch.arange(4.0), "conv.bias": torch.ones(1)}


class Runs:
    """An object whose reading would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


FILES = {
    "plain": TENSORS,
    "wrapped by DDP": {f"module.{name}": tensor for name, tensor in TENSORS.items()},
    "compiled, in DDP": {f"module._orig_mod.{name}": tensor for name, tensor in TENSORS.items()},
    "nnU-Net": {
        "network_weights": TENSORS,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(1)}}, "param_groups": []},
        "logging": {
            "mean_fg_dice": [np.float64(0.5), np.float32(0.25)],
            "values": np.zeros(3),
            "words": np.array(["a"]),
        },
        "_best_ema": np.float64(0.5),
        "init_args": {"device": torch.device("cpu"), "fold": 0},
    },
    "Lightning": {
        "epoch": 1,
        "state_dict": TENSORS,
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "optimizer_states": [{"state": {}}],
    },
    "MONAI": {"model": TENSORS, "optimizer": {"state": {}}},
    "MONAI with a learner": {"network": TENSORS, "metalr": {"scales": torch.zeros(3)}},
    "nested": {"model": {"state_dict": TENSORS}},
    "with extra state": {**TENSORS, "conv._extra_state": None, "version": 1},
}


OTHER = {name: tensor + 1 for name, tensor in TENSORS.items()}
SEVERAL = {
    "student and teacher": {"student": TENSORS, "teacher": {f"module.{name}": t for name, t in OTHER.items()}},
    "timm's average": {"epoch": 3, "state_dict": TENSORS, "state_dict_ema": OTHER},
    "a wrapped average": {"model": TENSORS, "ema": {"module": OTHER, "decay": 0.99}},
    "generator and discriminator": {"G": TENSORS, "D": {"conv.weight": torch.ones(7)}, "optimizer": {"state": {}}},
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_networks_or_copies_all_are_returned_with_their_keys(kind: str, tmp_path: Path) -> None:
    torch.save(SEVERAL[kind], tmp_path / "weights.pt")
    first = {"student and teacher": "student", "timm's average": "state_dict", "a wrapped average": "model"}
    second = {"student and teacher": "teacher", "timm's average": "state_dict_ema", "a wrapped average": "ema.module"}
    found = read_weights(tmp_path / "weights.pt")
    assert torch.equal(found[f"{first.get(kind, 'G')}.conv.weight"], TENSORS["conv.weight"])
    expected = torch.ones(7) if kind not in second else OTHER["conv.weight"]
    assert torch.equal(found[f"{second.get(kind, 'D')}.conv.weight"], expected)


def test_an_equal_copy_is_no_second_one(tmp_path: Path) -> None:
    copy = {name: tensor.clone() for name, tensor in TENSORS.items()}
    torch.save({"state_dict": TENSORS, "state_dict_ema": copy}, tmp_path / "weights.pt")
    assert list(read_weights(tmp_path / "weights.pt")) == list(TENSORS)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_hosts_write_is_read(kind: str, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(FILES[kind], file, _use_new_zipfile_serialization=zipped)
    found = read_weights(file)
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in TENSORS.items()}, tmp_path / "weights.safetensors")
    assert set(read_weights(tmp_path / "weights.safetensors")) == set(TENSORS)


def test_a_module_of_that_name_is_no_wrapper(tmp_path: Path) -> None:
    torch.save({"module.weight": torch.zeros(1), "head.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    assert list(read_weights(tmp_path / "weights.pt")) == ["module.weight", "head.weight"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(zipped: bool, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": TENSORS, "extra": Runs(trap)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"reading its .*mkdir would run code.* save the state dict alone"):
        read_weights(file)
    assert not trap.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"torch.nn.modules.linear.Linear would run code"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_a_file_that_is_cut_short_is_named(suffix: str, keep: float, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)({"weight": torch.zeros(1000)}, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(WeightsError, match=r"weights\.\w+ is damaged"):
        read_weights(file)


def test_changed_numbers_in_a_file_are_noticed_by_its_checksums(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1000)}, file)
    content = bytearray(file.read_bytes())
    content[content.index(bytes(4000)) + 100] = 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth is damaged.*Bad CRC-32"):
        read_weights(file)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert set(read_weights(tmp_path / "weights.pth")) == set(TENSORS)


DAMAGES: dict[str, Callable[[bytearray, int, random.Random], None]] = {
    "a flipped bit": lambda content, at, draw: content.__setitem__(at, content[at] ^ 1 << draw.randrange(8)),
    "another byte": lambda content, at, draw: content.__setitem__(at, draw.randrange(256)),
    "cut short": lambda content, at, _: content.__delitem__(slice(at, None)),
    "a hole": lambda content, at, draw: content.__delitem__(slice(at, at + draw.randrange(1, 20))),
    "bytes between": lambda content, at, draw: content.__setitem__(
        slice(at, at), draw.randbytes(draw.randrange(1, 20))
    ),
    "zeros": lambda content, at, _: content.__setitem__(slice(at, at + 16), bytes(len(content[at : at + 16]))),
}
WRITERS: dict[str, Callable[[Path], object]] = {
    "legacy.pt": lambda file: torch.save(FILES["Lightning"], file, _use_new_zipfile_serialization=False),
    "zip.pt": lambda file: torch.save(FILES["Lightning"], file),
    "numbers.safetensors": lambda file: save_file(TENSORS, file),
    "script.ts": lambda file: torch.jit.save(torch.jit.script(torch.nn.Conv2d(1, 2, 3)), str(file)),
}


def error_of(file: Path) -> str | None:
    try:
        read_weights(file)
    except WeightsError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_give_one_clear_error_or_are_read(name: str, tmp_path: Path) -> None:
    """3,000 files in all four formats."""
    draw = random.Random(name)
    file = tmp_path / name
    WRITERS[name](file)
    whole = file.read_bytes()
    for _ in range(750):
        content, kind = bytearray(whole), draw.choice(list(DAMAGES))
        for _ in range(draw.choice([1, 1, 1, 2, 5])):
            if content:
                DAMAGES[kind](content, draw.randrange(len(content)), draw)
        file.write_bytes(content)
        message = error_of(file)
        assert message is None or message.startswith(str(file))
        assert "\n" not in (message or "")


@pytest.mark.parametrize("content", [b"not weights", b"PK\x03\x04", b"\x80\x02}q\x00", b"{}", b"\x80\x02]q\x00."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_files_are_no_weights(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"is damaged, or no file of weights|holds no weights"):
        read_weights(file)


def test_missing_and_empty_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth is not there"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="is not a file"):
        read_weights(tmp_path)
    with pytest.raises(WeightsError, match=r"cannot be read \(File name too long\)"):
        read_weights(tmp_path / ("long" * 100))
    (tmp_path / "empty.pth").touch()
    with pytest.raises(WeightsError, match=r"empty\.pth is empty"):
        read_weights(tmp_path / "empty.pth")


@pytest.mark.parametrize("method", ["stat", "open"])
def test_a_folder_or_file_that_may_not_be_read_is_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in, since tests may run as a user who may read everything."""
    file = tmp_path / "weights.pt"
    torch.save(TENSORS, file)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(WeightsError, match=r"weights\.pt cannot be read \(Permission denied\); give a file"):
        read_weights(file)


def test_a_zip_file_of_another_program_is_described(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt2", "w") as archive:
        archive.writestr("program/archive_format", "pt2")
    with pytest.raises(WeightsError, match=r"torch.save has not written \(it holds program/archive_format\)"):
        read_weights(tmp_path / "program.pt2")


@pytest.mark.parametrize("content", [{}, {"epoch": 1}, [torch.zeros(1)], {"state_dict": {}}])
def test_a_file_without_weights_says_what_it_has(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"holds no weights: expected a dict of tensors"):
        read_weights(tmp_path / "other.pt")


def test_names_that_are_one_without_their_wrappers_are_refused(tmp_path: Path) -> None:
    torch.save({"a._orig_mod.weight": torch.zeros(1), "a.weight": torch.ones(1)}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="several weights of one name"):
        read_weights(tmp_path / "weights.pt")

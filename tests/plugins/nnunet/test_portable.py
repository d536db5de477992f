"""Portable models: folders and zip files whose checkpoints name nnU-Net's own trainer."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from typer.testing import CliRunner

from layertune import WeightsError
from layertune.cli import app as cli
from layertune_nnunet.errors import ExportError, TrainerNameError
from layertune_nnunet.tools import portable
from layertune_nnunet.tools.portable import Renamed, make_portable
from nnunet_runs import make

OWN_NETWORK = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerMine(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*arguments):
        return None

class nnUNetTrainerPlain(nnUNetTrainer):
    pass
"""


def checkpoint(trainer: str) -> dict[str, Any]:
    return {"network_weights": {"a.weight": torch.arange(3.0)}, "trainer_name": trainer, "current_epoch": 3}


def model(folder: Path, *trainers: str) -> Path:
    made = folder / "Dataset001_Balls" / f"{trainers[0]}__nnUNetPlans__3d_fullres"
    for fold, trainer in enumerate(trainers):
        (made / f"fold_{fold}").mkdir(parents=True)
        torch.save(checkpoint(trainer), made / f"fold_{fold}" / "checkpoint_final.pth")
    (made / "plans.json").write_text("{}")
    return made


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_all_checkpoints_of_a_folder_name_nnunets_trainer(tmp_path: Path) -> None:
    made = model(tmp_path, "nnUNetTrainerMetaLR_hlr0p05_20epochs", "nnUNetTrainerBiDirectional_m2_n3")
    done = make_portable(made)
    assert done == [
        Renamed("fold_0/checkpoint_final.pth", "nnUNetTrainerMetaLR_hlr0p05_20epochs", "nnUNetTrainer"),
        Renamed("fold_1/checkpoint_final.pth", "nnUNetTrainerBiDirectional_m2_n3", "nnUNetTrainer"),
    ]
    for renamed in done:
        found = torch.load(made / renamed.file, weights_only=True)
        assert str(found) == str(checkpoint("nnUNetTrainer"))
    assert sorted(contents(tmp_path)) == sorted(
        f"{made.relative_to(tmp_path)}/{name}"
        for name in ("plans.json", "fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth")
    )


def test_a_checkpoint_of_nnunet_itself_goes_through(nnunet: Path) -> None:
    trainer = make(nnUNetTrainer)
    trainer.on_train_start()
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    before = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    torch.save({**before, "trainer_name": "nnUNetTrainerMetaLR"}, folder / "checkpoint_final.pth")
    make_portable(nnunet / "results")
    after = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert after["trainer_name"] == "nnUNetTrainer"
    assert after.keys() == before.keys()
    assert after["init_args"] == before["init_args"]
    assert str(after["logging"]) == str(before["logging"])
    torch.testing.assert_close(after["network_weights"], before["network_weights"], rtol=0, atol=0)
    torch.testing.assert_close(after["optimizer_state"], before["optimizer_state"], rtol=0, atol=0)


def test_only_checkpoints_of_a_zip_file_change(tmp_path: Path) -> None:
    model(tmp_path / "in", "nnUNetTrainerMetaLRStreaming", "nnUNetTrainer")
    file = zipped(tmp_path / "in", tmp_path / "model.zip")
    before = {entry.filename: (entry.date_time, entry.compress_type) for entry in zipfile.ZipFile(file).infolist()}
    done = make_portable(file)
    assert [(renamed.before, renamed.after) for renamed in done] == [
        ("nnUNetTrainerMetaLRStreaming", "nnUNetTrainer"),
        ("nnUNetTrainer", "nnUNetTrainer"),
    ]
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {entry.filename: (entry.date_time, entry.compress_type) for entry in archive.infolist()} == before
        archive.extractall(tmp_path / "out")
    assert torch.load(tmp_path / "out" / done[0].file, weights_only=True)["trainer_name"] == "nnUNetTrainer"
    old, new = contents(tmp_path / "in"), contents(tmp_path / "out")
    assert {name for name in old if old[name] != new[name]} == {done[0].file}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "model.zip", "out"]


def test_a_portable_model_is_not_touched(tmp_path: Path) -> None:
    made = model(tmp_path / "in", "nnUNetTrainer")
    file = zipped(tmp_path / "in", tmp_path / "model.zip")
    before = contents(tmp_path)
    assert [renamed.after for renamed in make_portable(made)] == ["nnUNetTrainer"]
    make_portable(file)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_network_of_ones_own_is_refused_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_trainers.py").write_text(OWN_NETWORK)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))
    made = model(tmp_path / "in", "nnUNetTrainerMetaLR", "nnUNetTrainerMine")
    file = zipped(tmp_path / "in", tmp_path / "model.zip")
    before = contents(tmp_path / "in"), file.read_bytes()
    for target in (made, file):
        with pytest.raises(ExportError, match="nnUNetTrainerMine builds a network of its own"):
            make_portable(target)
    assert (contents(tmp_path / "in"), file.read_bytes()) == before
    assert portable.stock_trainer("nnUNetTrainerPlain") == "nnUNetTrainer"
    with pytest.raises(TrainerNameError, match="the trainer nnUNetTrainerUnheardOf is neither"):
        portable.stock_trainer("nnUNetTrainerUnheardOf")


@pytest.mark.parametrize("name", ["../out.pth", "/out.pth", "a/../../out.pth", "C:\\out.pth", "..\\out.pth"])
def test_a_zip_with_paths_that_lead_out_of_it_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "in" / "model.zip"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x")
    before = file.read_bytes()
    with pytest.raises(ExportError, match="leads out of it"):
        make_portable(file)
    assert contents(tmp_path) == {"in/model.zip": before}


def test_files_that_are_not_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nowhere is not there"):
        make_portable(tmp_path / "nowhere")
    (tmp_path / "model.zip").write_bytes(b"no zip")
    with pytest.raises(ExportError, match="neither a folder nor a complete zip"):
        make_portable(tmp_path / "model.zip")
    torch.save({"network_weights": {}}, tmp_path / "other.pth")
    for target in (tmp_path, zipped(tmp_path, tmp_path.parent / "other.zip")):
        with pytest.raises(ExportError, match="holds no checkpoint of nnU-Net"):
            make_portable(target)
    (tmp_path / "other.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="damaged"):
        make_portable(tmp_path)


def test_a_damaged_zip_file_is_refused_and_kept(tmp_path: Path) -> None:
    made = model(tmp_path / "in", "nnUNetTrainerMetaLR")
    file = zipped(made, tmp_path / "model.zip")
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)
    with pytest.raises(ExportError, match="complete zip"):
        make_portable(file)
    assert file.read_bytes() == content


def test_the_command_shows_what_it_did(tmp_path: Path) -> None:
    made = model(tmp_path, "nnUNetTrainerLastLayer")
    result = CliRunner().invoke(cli.app, ["nnunet", "portable", str(made), "--json"])
    assert json.loads(result.stdout) == [
        {"file": "fold_0/checkpoint_final.pth", "before": "nnUNetTrainerLastLayer", "after": "nnUNetTrainer"}
    ]
    assert "checkpoint_final.pth" in CliRunner().invoke(cli.app, ["nnunet", "portable", str(made)]).stdout
    failed = CliRunner().invoke(cli.app, ["nnunet", "portable", str(tmp_path / "nowhere")])
    assert (failed.exit_code, len(failed.stderr.splitlines())) == (2, 1)

"""Checkpoints that are written whole and that nnU-Net alone can read, and mistakes that are refused."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from torch import nn

import layertune_nnunet
from layertune import ModelError, OptimizerError
from layertune_nnunet import LastLayerMixin, MetaLRMixin, nnUNetTrainerLastLayer, nnUNetTrainerMetaLR
from layertune_nnunet.errors import ResultsFolderError
from layertune_nnunet.trainers.checkpoints import portable_name
from nnunet_runs import CASES, DATASET, make, plans, same, train, volume


class OwnArchitecture(MetaLRMixin, nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager: Any, *_: Any) -> nn.Module:  # noqa: ARG004 - nnU-Net looks for it
        return nn.Sequential(nn.Flatten(), nn.Linear(7, 2))


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        (nnUNetTrainerMetaLR, "nnUNetTrainer"),
        (nnUNetTrainerLastLayer, "nnUNetTrainer"),
        (type("A", (MetaLRMixin, nnUNetTrainerBN), {}), "nnUNetTrainerBN"),
        (type("B", (LastLayerMixin, nnUNet_Primus_S_Trainer), {}), "nnUNet_Primus_S_Trainer"),
        (OwnArchitecture, "OwnArchitecture"),
        (type("C", (OwnArchitecture,), {}), "C"),
    ],
)
def test_a_checkpoint_names_the_trainer_that_builds_its_network(trainer: type, name: str) -> None:
    assert portable_name(trainer) == name


@pytest.mark.usefixtures("nnunet")
def test_stock_nnunet_reads_a_checkpoint() -> None:
    trained = train(nnUNetTrainerMetaLR, epochs=1)
    saved = torch.load(Path(trained.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert saved["init_args"]["configuration"] == "3d_fullres"
    assert not any(type(value).__module__.startswith("layertune") for value in walked(saved))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(trained.output_folder_base, (0,))
    assert predictor.trainer_name == "nnUNetTrainer"
    found = predictor.network.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in trained.network.state_dict().items())


def walked(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [value, *(leaf for part in inner for leaf in walked(part))]


@pytest.mark.usefixtures("nnunet")
def test_a_save_that_fails_keeps_the_previous_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(nnUNetTrainerMetaLR)
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()
    save = torch.save

    def cut_off(content: Any, target: str) -> None:
        assert content["trainer_name"] == "nnUNetTrainer"
        save(content, target)
        Path(target).write_bytes(Path(target).read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(OSError, match="no space left"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before
    assert type(trainer).__name__ == "nnUNetTrainerMetaLR"
    assert [path for path in file.parent.iterdir() if "checkpoint" in path.name] == [file]


@pytest.mark.usefixtures("nnunet")
def test_other_ranks_do_not_touch_a_checkpoint_that_rank_0_writes() -> None:
    trainer = make(nnUNetTrainerMetaLR)
    trainer.initialize()
    folder = Path(trainer.output_folder)
    (folder / ".checkpoint_best.pth.part").write_bytes(b"half")
    trainer.local_rank = 1
    trainer.save_checkpoint(str(folder / "checkpoint_best.pth"))
    assert [(path.name, path.read_bytes()) for path in folder.glob("*checkpoint*")] == [
        (".checkpoint_best.pth.part", b"half")
    ]


@pytest.mark.usefixtures("nnunet")
def test_switched_off_checkpoints_stay_off() -> None:
    trainer = make(nnUNetTrainerMetaLR)
    trainer.disable_checkpointing = True
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert not list(Path(trainer.output_folder).glob("*checkpoint*"))


def test_a_network_whose_layers_cannot_be_found_is_refused(nnunet: Path) -> None:
    with pytest.raises(ModelError, match=r"no layers in the network of configuration 2d for patches of 16x16: .*Seq"):
        make(OwnArchitecture, "2d").initialize()
    assert not list(nnunet.rglob("*.pth"))


@pytest.mark.usefixtures("nnunet")
def test_weights_of_another_architecture_are_refused_as_nnunet_does(tmp_path: Path) -> None:
    other = make(nnUNetTrainer, "2d")
    other.initialize()
    other.save_checkpoint(str(tmp_path / "other.pth"))
    trainer = make(nnUNetTrainerMetaLR)
    trainer.initialize()
    with pytest.raises(AssertionError, match="does not seem to be compatible with your network"):
        load_pretrained_weights(trainer.network, tmp_path / "other.pth")
    assert not list(Path(trainer.output_folder).glob("*.pth"))


@pytest.mark.usefixtures("nnunet")
@pytest.mark.parametrize("variable", ["nnUNet_results", "nnUNet_preprocessed"])
def test_a_variable_that_is_not_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(RuntimeError, match=f"{variable} is not defined"):
        make(nnUNetTrainerMetaLR)


def test_a_results_folder_that_is_a_file(nnunet: Path) -> None:
    (nnunet / "results").write_text("")
    with pytest.raises(ResultsFolderError, match=r"nothing can be written into .*results.*set nnUNet_results to"):
        make(nnUNetTrainerMetaLR)


def test_a_results_folder_of_others_in_which_only_the_own_part_can_be_written(
    nnunet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tempfile.TemporaryFile

    def in_own_part(*, dir: Path) -> Any:  # noqa: A002 - the name that is called for
        if DATASET not in str(dir):
            raise PermissionError(13, "Permission denied")
        return temporary(dir=dir)

    monkeypatch.setattr("layertune_nnunet.trainers.base.tempfile.TemporaryFile", in_own_part)
    assert nnunet / "results" in Path(make(nnUNetTrainerMetaLR).output_folder).parents


def test_a_read_only_results_folder(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(nnUNetTrainer, "2d")  # the folder is there from a training before

    def read_only(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("layertune_nnunet.trainers.base.tempfile.TemporaryFile", read_only)
    with pytest.raises(ResultsFolderError, match=r"Permission denied.* so nothing was trained"):
        make(nnUNetTrainerMetaLR, "2d")
    assert not list(nnunet.rglob("*.pth"))


@pytest.mark.usefixtures("nnunet")
@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("_additive", {}, r'rule="additive" needs a hyper_lr .*; in a trainer\'s name: _hlr0p05, _cosine'),
        ("_joint_max1em7", {}, r"max_lr must be above min_lr = 1e-06, not 1e-07; .*: _min1em6, _max0p1"),
        ("", {"every": 0}, "every must be a whole number from 1, not 0; .*: _every5"),
        ("", {"max_change": 0.5}, r"max_change must be above 1, not 0.5$"),
        ("", {"rule": "fast"}, "rule must be one of "),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_trainer_is_made(
    name: str, values: dict[str, Any], expected: str
) -> None:
    for trainer in ("nnUNetTrainerMetaLR", "nnUNetTrainerMetaLRStreaming", "nnUNetTrainerAlchemyMetaLR"):
        with pytest.raises(OptimizerError, match=expected):
            make(getattr(layertune_nnunet, f"{trainer}{name}"), **values)


@pytest.mark.usefixtures("nnunet")
def test_a_warm_up_that_takes_the_whole_training_is_named() -> None:
    trainer = make(type("WarmUp", (LastLayerMixin, nnUNetTrainer_warmup), {}), epochs=20)
    trainer.on_train_start()
    assert "WARNING: the warm-up of 50 epochs takes all 20 epochs" in Path(trainer.log_file).read_text()
    trainer.num_epochs = 51
    trainer.on_train_start()
    assert Path(trainer.log_file).read_text().count("WARNING: the warm-up") == 1


@pytest.mark.usefixtures("nnunet")
def test_a_cascade_without_its_previous_stage_is_refused() -> None:
    with pytest.raises(ResultsFolderError, match=r"made with 3d_lowres, .*-tr nnUNetTrainerMeta"):
        train(nnUNetTrainerMetaLR, "3d_cascade_fullres")


def test_meta_batches_of_a_cascade_contain_the_previous_stage(nnunet: Path) -> None:
    for trainer in (nnUNetTrainer, nnUNetTrainerMetaLR):
        before = nnunet / "results" / DATASET / f"{trainer.__name__}__nnUNetPlans__3d_lowres"
        folder = before / "predicted_next_stage" / "3d_cascade_fullres"
        folder.mkdir(parents=True)
        for number, case in enumerate(CASES):
            labels = volume(number)[1].astype(np.uint8)
            nnUNetDatasetBlosc2.save_seg(labels, str(folder / case))
    stock = train(nnUNetTrainer, "3d_cascade_fullres", epochs=1)
    assert same(train(nnUNetTrainerMetaLR, "3d_cascade_fullres", epochs=1, hyper_lr=0.0), stock)
    learned = make(nnUNetTrainerMetaLR, "3d_cascade_fullres", plans=plans())
    learned.on_train_start()
    assert next(learned.dataloader_meta)["data"].shape[1] == 3

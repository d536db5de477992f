"""A study by nnU-Net: its trainers for each method, its Dice, and a whole run."""

import json
import signal
import sys
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from layertune import AllLayers
from layertune_nnunet import FixedLayersMixin, MetaLRMixin, MetaLRStreamingMixin
from layertune_studies.config.study import Study, load_study
from layertune_studies.engine.run import run_study
from layertune_studies.errors import StudyError
from layertune_studies.training.nnunet import TRAINERS, _nnunet, scores_of, trainer_class
from layertune_studies.training.settings import Depths, policy_of, settings_of
from study_runs import nnunet_study, volumes, write_study


def test_scores_are_those_of_the_formulas(tmp_path: Path) -> None:
    truth, found = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[0], found[0, :2], found[1, :1] = 1, 1, 1  # 16 voxels; 8 of them found, and 4 others
    truth[3], found[3] = 2, 2
    for folder, array in (("labels", truth), ("found", found)):
        (tmp_path / folder).mkdir()
        nib.nifti1.save(nib.nifti1.Nifti1Image(array, np.eye(4)), tmp_path / folder / "case.nii.gz")
    one = 2 * 8 / (16 + 12)
    assert scores_of(tmp_path / "found", tmp_path / "labels", [1, 2, 3]) == pytest.approx(
        {
            "dice": (one + 1 + 0) / 3,  # the third class is nowhere, and scores 0
            "ppv": (8 / 12 + 1 + 0) / 3,
            "sensitivity": (8 / 16 + 1 + 0) / 3,
            "dice_1": one,
            "dice_2": 1.0,
            "dice_3": 0.0,
        }
    )


def classes_of(methods: list[dict[str, Any]]) -> list[type]:
    study = Study.model_validate(nnunet_study(methods=methods))
    return [trainer_class(study, method, settings_of(method, Depths(8, 4))[0]) for method in study.methods]


def test_each_method_has_its_trainer() -> None:
    base = TRAINERS["adamw"]
    assert classes_of([{"kind": "flat"}, {"kind": "scratch"}, {"kind": "untuned"}]) == [base] * 3
    exact, every, streaming = classes_of(
        [
            {"kind": "metalr", "rule": "cosine", "hyper_lr": 0.05, "max_lr": 0.1},
            {"kind": "metalr", "mode": "every", "every": 5},
            {"kind": "metalr", "mode": "streaming"},
        ]
    )
    assert issubclass(exact, MetaLRMixin)
    assert issubclass(exact, base)
    settings = ("rule", "hyper_lr", "max_lr", "every")
    assert [getattr(exact, key) for key in settings] == ["cosine", 0.05, 0.1, 1]
    assert every.every == 5
    assert issubclass(streaming, MetaLRStreamingMixin)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "last"},
        {"kind": "layer-wise", "first": [3]},
        {"kind": "bi-directional", "settings": [[3, 6]]},
        {"kind": "unet", "schemes": ["expanding"]},
    ],
)
def test_the_trainer_of_a_frozen_method_has_its_policy(method: dict[str, Any]) -> None:
    study = Study.model_validate(nnunet_study(methods=[method, {"kind": "flat"}]))
    (setting,) = settings_of(study.methods[0], Depths(8, 4))
    trainer = trainer_class(study, study.methods[0], setting)
    assert issubclass(trainer, FixedLayersMixin)
    policy = trainer.policy(None)
    assert vars(policy) == vars(policy_of(setting)) if hasattr(policy, "__dict__") else policy == policy_of(setting)
    assert type(policy) is not AllLayers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"name": "UNet"}}, "network.name nnunet, .*, goes with loop nnunet, and no other"),
        ({"loop": "torch"}, "network.name nnunet, .*, goes with loop nnunet, and no other"),
        ({"data": {"set": "volumes", "classes": 2, "size": [8, 8, 8], "labelled": [2]}}, "data.size is nnU-Net's own"),
        ({"data": {"set": "pneumoniamnist", "labelled": [2]}}, "reads files of volumes, and pneumoniamnist has none"),
        ({"data": {"set": "volumes", "classes": 2, "labelled": [2, 4]}}, "for one number of labelled cases"),
        ({"pretraining": {"task": "genesis"}}, "cannot pre-train by genesis; take the task inverted, or none"),
        ({"pretraining": {"task": "inverted", "batch": 2}}, "pretraining.batch is nnU-Net's own"),
        ({"optimizer": {"name": "adam"}}, "trainers with sgd and adamw"),
        ({"optimizer": {"name": "sgd", "momentum": 0.9}}, "optimizer.momentum is nnU-Net's own"),
        ({"network": {"name": "nnunet", "arguments": {"wider": 2}}}, "network.arguments.wider is unknown"),
        ({"curve": 2}, "curve is for the loops torch and lightning"),
        ({"methods": [{"kind": "flat"}, {"kind": "last", "after": "flat"}]}, "after is for the loops torch and"),
        ({"methods": [{"kind": "autolr"}]}, "loop nnunet cannot train by autolr"),
    ],
)
def test_what_nnunet_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(write_study(tmp_path / "study.yaml", **nnunet_study(**changes)))


@pytest.mark.slow
def test_a_pool_ends_although_sigterm_has_a_handler(tmp_path: Path) -> None:
    """A pool of processes that ends at once hangs under a handler in Python, as Ray leaves one."""
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with _nnunet(tmp_path, "results"):
            for _ in range(6):
                with Pool(8) as pool:
                    pool.map(abs, [1])
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
def test_a_whole_study_from_raw_files_to_scores(tmp_path: Path) -> None:
    """nnU-Net's own commands plan and preprocess; two methods train two steps, and predictions are evaluated."""
    methods = [{"kind": "untuned"}, {"kind": "metalr", "rule": "cosine", "lr": [1e-3]}]
    study = Study.model_validate(nnunet_study(methods=methods))
    out = tmp_path / "out"
    run_study(study, out, volumes(tmp_path, count=8, side=16), console=Console(quiet=True))
    results = {
        path.name.partition("_")[0]: json.loads(path.read_text()) for path in (out / "results").glob("*_seed0_*")
    }
    untuned, learned = results["untuned"], results["metalr-exact"]
    assert (untuned["steps"], learned["steps"], learned["passes"]) == (0, 2, 4)
    assert len(learned["profile"]["steps"]) == 2
    assert list(learned["lrs"]) == learned["profile"]["layers"]
    for found in results.values():
        assert not found["diverged"]
        assert set(found["test"]) == {"dice", "ppv", "sensitivity", "dice_1"}
        assert all(0 <= value <= 1 for part in ("validation", "test") for value in found[part].values())
    trained = next(out.glob("nnunet_*/trials/metalr*/*/*/fold_all"))
    assert (trained / "checkpoint_final.pth").is_file()
    assert (trained / "learned_rates.json").is_file()

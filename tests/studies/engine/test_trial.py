"""A trial on folders of images: split without near copies, cropped, normalised, with a head of PyTorch's own."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import Linear

from layertune_studies.config.study import Study
from layertune_studies.engine.context import StudyContext
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import run_trial, training_of
from study_runs import study_of, write_pictures


def study(**changes: object) -> Study:
    data = {
        "set": "brain-tumour-mri",
        "size": [36, 36],
        "patch": [32, 32],
        "normalise": "imagenet",
        "split": {"alike": 0.97},
        "augment": {"flip": 0.5, "contrast": 0, "brightness": 0, "noise": 0},
    }
    network = {"name": "test_resnet", "channels_last": True, "reset_head": True}
    metrics = ["macro_auc", "accuracy"]
    return Study.model_validate(study_of(**{"data": data, "network": network, "metrics": metrics, **changes}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = ("no_tumor", "glioma_tumor", "meningioma_tumor", "pituitary_tumor")
    write_pictures(tmp_path / "brain_tumour_mri", list(names), count=5)
    return tmp_path


def test_a_new_head_is_pytorchs_own_and_part_of_a_trials_identity(root: Path, tmp_path: Path) -> None:
    (own, usual) = (study(network={"name": "test_resnet"} | more) for more in ({"reset_head": True}, {}))
    trials = [StudyContext(one, root, StudyStore(tmp_path / "out")).trials[0] for one in (own, usual)]
    assert trials[0].name(own) != trials[1].name(usual)
    assert "reset_head" not in json.dumps(trials[1].identity(usual)), "results of version 0.1 would not be found"
    heads = [training_of(one, trial, root, None).network.fc for one, trial in zip((own, usual), trials, strict=True)]
    bound = heads[0].in_features ** -0.5
    assert all(isinstance(head, Linear) for head in heads)
    assert 0.9 * bound < float(heads[0].weight.detach().abs().max()) <= bound
    assert float(heads[0].bias.detach().abs().max()) > 0


@pytest.mark.slow
def test_a_trial_is_the_same_each_time(root: Path, tmp_path: Path) -> None:
    one = study()
    trial = StudyContext(one, root, StudyStore(tmp_path / "out")).trials[0]
    first, second = (run_trial(one, trial, root, None) for _ in range(2))
    assert first["test"] == second["test"]
    assert {"macro_auc", "auc", "sensitivity_3"} <= first["test"].keys()
    assert torch.isfinite(torch.tensor(list(first["validation"].values()))).all()

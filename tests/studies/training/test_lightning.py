"""A study by Lightning's Trainer gives what the study's own loop gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from layertune_studies.config.study import Study, load_study
from layertune_studies.engine.trial import Trial, training_of
from layertune_studies.errors import StudyError
from layertune_studies.training import lightning
from layertune_studies.training.loop import TrainingResult
from layertune_studies.training.methods import train
from layertune_studies.training.settings import Depths, settings_of
from study_runs import study_of, write_images, write_study

METALR = {"kind": "metalr", "rule": "cosine", "hyper_lr": 0.1}
METHODS: list[dict[str, Any]] = [
    {"kind": "flat"},
    {"kind": "scratch"},
    {"kind": "last"},
    {"kind": "bi-directional", "settings": [[3, 6]]},
    METALR,
    {**METALR, "mode": "every", "every": 2},
    {**METALR, "mode": "streaming"},
    {"kind": "untuned"},
    {"kind": "layer-decay", "rates": [0.5]},
    {"kind": "inverse_size", "exponents": [0.5], "rate": "learned"},
    {"kind": "bi-directional", "settings": [[3, 6]], "rate": "learned"},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder


def trained_by(
    loop: str, method: dict[str, Any], root: Path, *, lr: float = 0.1, **changes: Any
) -> tuple[TrainingResult, dict[str, Any]]:
    """Train five steps; return the outcome and the weights."""
    budget = {"unit": "steps", "amount": 5, "batch": 4}
    lone = {**method, "lr": [lr]}
    study = Study.model_validate(study_of(loop=loop, methods=[lone], budget=budget, **changes))
    (one,) = study.methods
    (setting,) = settings_of(one, Depths(10, 1))
    training = training_of(study, Trial(one, setting, lr, 8, 0), root, None)
    return train(training, one, setting), dict(training.network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method['kind']} {method.get('mode', '')}".strip())
def test_both_loops_train_alike(root: Path, method: dict[str, Any]) -> None:
    optimizer = {"name": "sgd", "weight_decay": 1e-3, "head_factor": 2.0, "schedule": "one-cycle"}
    own, weights = trained_by("torch", method, root, optimizer=optimizer)
    lightning, other = trained_by("lightning", method, root, optimizer=optimizer)
    assert lightning == own
    assert own.steps == (0 if method["kind"] == "untuned" else 5)
    for name, weight in weights.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_both_loops_measure_the_same_learning_curve(root: Path) -> None:
    changes = {"curve": 2, "optimizer": {"name": "sgd"}}
    own, lightning = (trained_by(loop, {"kind": "flat"}, root, **changes)[0] for loop in ("torch", "lightning"))
    assert [step for step, _ in own.curve] == [0, 2, 4]
    assert lightning.curve == own.curve
    assert len(lightning.seconds) == 5


def test_a_fit_that_diverges_ends_as_the_studys_own_loop_does(root: Path) -> None:
    own, lightning = (trained_by(loop, {"kind": "flat"}, root, lr=1e30)[0] for loop in ("torch", "lightning"))
    assert own.steps < 5
    assert lightning.steps == own.steps


def test_a_method_that_lightning_has_no_callback_for_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study.yaml", loop="lightning", methods=[{"kind": "autolr"}])
    with pytest.raises(StudyError, match="loop lightning cannot train by autolr; it has the kinds untuned, flat"):
        load_study(path)


@pytest.mark.parametrize(("kind", "accelerator"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_the_trainer_takes_the_device_of_the_studys_own_loop(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, accelerator: str
) -> None:
    asked: list[Any] = []

    def note(**options: Any) -> None:
        asked.append(options["accelerator"])
        raise KeyboardInterrupt  # nothing is trained

    monkeypatch.setattr(lightning, "device", lambda: torch.device(kind))
    monkeypatch.setattr(lightning, "quiet_trainer", note)
    with pytest.raises(KeyboardInterrupt):
        trained_by("lightning", {"kind": "flat"}, root)
    assert asked == [accelerator]

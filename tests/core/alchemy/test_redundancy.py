"""Planted redundant kernels are found, and nothing else is."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from layertune import AlchemyError, ModelError, redundant_kernels, trace
from layertune.alchemy.kernels import KernelNorms, pair_kernels
from layertune.alchemy.norms import affine_norms, gamma_of
from layertune.alchemy.redundancy import RedundantKernels
from norm_networks import FAMILIES, PreActivation, image, of


def planted(net: nn.Module, values: dict[int, float]) -> str:
    """Set gammas of the only norm; its name."""
    ((name, norm),) = affine_norms(net).items()
    with torch.no_grad():
        for channel, value in values.items():
            gamma_of(norm).view(-1)[channel] = value
    return name


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_planted_kernel_is_found(make: Callable[[], nn.Module]) -> None:
    net = make()
    name = planted(net, {1: 0.01, 4: -0.03, 2: 0.06})
    found = redundant_kernels(net, image(), threshold=0.05)
    assert found.channels == {name: (1, 4)}
    assert (found.count, found.total, found.threshold) == (2, 6, 0.05)
    assert found.unpaired == {}


def test_the_threshold_itself_is_not_redundant() -> None:
    net = of(nn.BatchNorm2d(6).double())
    name = planted(net, {0: 0.25, 1: 0.2499})
    assert redundant_kernels(net, threshold=0.25, found=trace(of(nn.BatchNorm2d(6)), image())).channels == {name: (1,)}


@pytest.mark.parametrize(("quantile", "expected"), [(0.1, (0,)), (0.34, (0, 1)), (0.9, (0, 1, 2, 3, 4))])
def test_a_quantile_is_a_share_of_all_kernels(quantile: float, expected: tuple[int, ...]) -> None:
    net = of(nn.BatchNorm2d(6))
    name = planted(net, {c: (c + 1) * (-1.0) ** c for c in range(6)})
    found = redundant_kernels(net, image(), quantile=quantile)
    assert found.channels == {name: expected}
    assert found.threshold == pytest.approx(torch.quantile(torch.arange(1.0, 7), quantile).item())


def test_pre_activation_norms_are_not_judged() -> None:
    net = PreActivation()
    with torch.no_grad():
        for norm in (net.norm1, net.norm2, net.norm3):
            norm.weight[3] = 0
    found = redundant_kernels(net, image(), threshold=0.05)
    assert found.channels == {"norm2": (3,)}
    assert set(found.unpaired) == {"norm1", "norm3"}
    assert found.total == 6


def test_where_no_norm_scales_kernels_a_warning_says_so() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1))
    with pytest.warns(UserWarning, match=r"none can be redundant; 0: it reads no single"):
        found = redundant_kernels(net, image(), threshold=0.5)
    assert (found.count, found.total, list(found.unpaired)) == (0, 0, ["0"])
    with pytest.warns(UserWarning, match="none can be redundant"):
        assert redundant_kernels(net, image(), quantile=0.5).count == 0


def test_a_threshold_that_takes_a_whole_layer_is_refused_unless_asked() -> None:
    net = of(nn.BatchNorm2d(6))
    name = planted(net, dict.fromkeys(range(6), 0.01))
    with pytest.raises(AlchemyError, match=rf"all kernels of 1 layers \({name}\).*whole_layers=True"):
        redundant_kernels(net, image(), threshold=0.05)
    assert redundant_kernels(net, image(), threshold=0.05, whole_layers=True).channels == {name: tuple(range(6))}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gammas_that_are_no_numbers_are_refused(bad: float) -> None:
    net = of(nn.BatchNorm2d(6))
    planted(net, {2: bad})
    with pytest.raises(AlchemyError, match="gammas of 1 are not finite"):
        redundant_kernels(net, image(), threshold=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either a threshold"),
        ({"threshold": 0.1, "quantile": 0.1}, "either a threshold"),
        ({"threshold": 0.0}, "above 0, not 0.0"),
        ({"threshold": -0.1}, "above 0"),
        ({"threshold": float("nan")}, "above 0"),
        ({"quantile": 0.0}, "between 0 and 1"),
        ({"quantile": 1.0}, "between 0 and 1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(AlchemyError, match=message):
        redundant_kernels(of(nn.BatchNorm2d(6)), image(), **settings)


def test_networks_without_gammas() -> None:
    with pytest.raises(ModelError, match="has no normalisation layer"):
        redundant_kernels(nn.Conv2d(1, 2, 1), image(), threshold=0.1)
    with pytest.raises(ModelError, match=r"none of the 1 norms.*'1'.*affine=True"):
        redundant_kernels(of(nn.InstanceNorm2d(6)), image(), threshold=0.1)
    with pytest.raises(ModelError, match="example input"):
        redundant_kernels(of(nn.BatchNorm2d(6)), threshold=0.1)


def test_nothing_changes() -> None:
    net = FAMILIES["batch"]()
    planted(net, {0: 0.0})
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    redundant_kernels(net, image(), threshold=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_state_is_plain_and_comes_back() -> None:
    net = of(nn.BatchNorm2d(6))
    planted(net, {1: 0.01})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = redundant_kernels(net, image(), threshold=0.05)
    both: KernelNorms = pair_kernels(net, trace(net, image()))
    assert found.state() == {"threshold": 0.05, "channels": {"1": [1]}}
    assert RedundantKernels.from_state(found.state(), both) == found


@pytest.mark.parametrize("channels", [{"norm": [0]}, {"1": [6]}, {"1": [-1]}])
def test_a_state_of_other_norms_or_kernels_is_refused(channels: dict[str, list[int]]) -> None:
    net = of(nn.BatchNorm2d(6))
    both = pair_kernels(net, trace(net, image()))
    with pytest.raises(AlchemyError, match="load it into the network that it was saved from"):
        RedundantKernels.from_state({"threshold": 0.05, "channels": channels}, both)


def test_half_precision_is_compared_as_it_is() -> None:
    net = of(nn.BatchNorm2d(6)).bfloat16()
    planted(net, {3: 0.01})
    x: Tensor = image().bfloat16()
    assert redundant_kernels(net, x, threshold=0.05).channels == {"1": (3,)}

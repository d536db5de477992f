"""Rates in inverse proportion to the sizes of layers, alone and with a learned factor on all of them."""

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from layertune import (
    AllLayers,
    InverseSize,
    Layer,
    LayerMap,
    MetaLR,
    PolicyError,
    map_layers,
    param_groups,
)
from layertune.policies.policies import scales_of
from small_networks import SmallUNet, image

# Weights, biases and norms of SmallUNet's double convolutions, counted by hand: for 2 channels from 1 that is
# (1 * 2 * 9 + 2) + 2 * 2 + (2 * 2 * 9 + 2) + 2 * 2 = 66. The expanding path has a transposed convolution each, and the
# head two convolutions, one of which makes the output that deep supervision reads.
SIZES = (66, 240, 912, 132 + 456, 34 + 120, 15 + 9)


def two_layers(*sizes: int | None) -> LayerMap:
    roles = ("encoder", "head")
    layers = (
        Layer(f"l{i}", (f"l{i}.weight",), i, role, size=size)
        for i, (role, size) in enumerate(zip(roles, sizes, strict=True), 1)
    )
    return LayerMap(tuple(layers), "I1", "block")


def test_a_u_net_has_the_sizes_that_a_count_by_hand_gives():
    net = SmallUNet()
    layers = map_layers(net, image())
    assert tuple(layer.size for layer in layers) == SIZES
    assert sum(SIZES) == sum(parameter.numel() for parameter in net.parameters())


def test_rates_are_in_inverse_proportion_to_sizes():
    layers = map_layers(SmallUNet(), image())
    assert scales_of(layers, InverseSize()) == pytest.approx([24 / size for size in SIZES])
    assert scales_of(layers, InverseSize(0.5)) == pytest.approx([math.sqrt(24 / size) for size in SIZES])
    assert scales_of(layers, InverseSize(0)) == AllLayers()(layers)


def test_the_reading_of_depth_does_not_matter():
    first, second = (map_layers(SmallUNet(), image(), depth=depth) for depth in ("I1", "I2"))
    assert InverseSize()(first) == InverseSize()(second)


def test_a_map_by_a_matcher_has_sizes_too():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert [layer.size for layer in map_layers(net, matcher=lambda name: int(name[0]))] == [16, 10]


def test_a_shared_parameter_counts_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    layers = map_layers(net, torch.empty(2, 4))
    assert [layer.size for layer in layers] == [16 + 4, 4]
    assert InverseSize()(layers) == [0.2, 1]


def test_frozen_parameters_count():
    net = SmallUNet()
    net.requires_grad_(False)
    assert InverseSize()(map_layers(net, image())) == InverseSize()(map_layers(SmallUNet(), image()))


def test_the_head_keeps_its_own_base_rate():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = map_layers(net, torch.empty(2, 3))
    groups = param_groups(net, layers, lr=1.0, head_lr=10.0, policy=InverseSize())
    assert {group["layer"]: group["lr"] for group in groups} == {"0": 10 / 16, "2": 10.0}


@pytest.mark.parametrize("exponent", [-1, math.inf, math.nan])
def test_an_exponent_out_of_range_is_refused(exponent: float):
    with pytest.raises(PolicyError, match="must be finite and >= 0"):
        InverseSize(exponent)


def test_an_exponent_that_would_freeze_a_layer_is_refused():
    with pytest.raises(PolicyError, match="of 1000000 weights, a rate of 0; take a smaller exponent"):
        scales_of(two_layers(10**6, 1), InverseSize(100))


def test_a_map_without_sizes_is_refused():
    with pytest.raises(PolicyError, match=r"needs the sizes .* none for \['l2'\]; make it with map_layers"):
        scales_of(two_layers(5, None), InverseSize())


def test_a_layer_that_was_pickled_by_an_earlier_version_has_no_size():
    layer = two_layers(5, 5)[0]
    vars(layer).pop("size")
    assert layer.size is None
    assert replace(layer, size=3).size == 3


def test_a_parameter_without_a_shape_leaves_its_layer_without_a_size():
    net = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    layers = map_layers(net, matcher=lambda name: int(name[0]))
    assert [layer.size for layer in layers] == [16, None]
    net(torch.zeros(1, 3))
    assert [layer.size for layer in map_layers(net, matcher=lambda name: int(name[0]))] == [16, 10]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_learned_factor_keeps_the_ratios_in_each_step(streaming: bool):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    layers = map_layers(net, torch.empty(2, 3, dtype=torch.float64))
    parameters = layers.parameters_of(net)
    scales = dict(zip((layer.name for layer in layers), InverseSize()(layers), strict=True))
    optimizer = torch.optim.SGD(param_groups(net, layers, lr=1.0, policy=InverseSize()))
    metalr, factors = MetaLR(optimizer, streaming=streaming), set()
    x = torch.randn(16, 3, dtype=torch.float64)
    y = x.sum(1, keepdim=True)
    for _ in range(15):  # the factor is still growing then, and no step is so long that it is shortened
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        # What the step moves a layer by, over its gradient, is the rate that the layer was trained at.
        before = {name: vector(held) for name, held in parameters.items()}
        gradient = {name: vector(p.grad for p in held) for name, held in parameters.items()}
        optimizer.step()
        moved = {name: before[name] - vector(held) for name, held in parameters.items()}
        rates = {name: float(moved[name].norm() / gradient[name].norm()) for name in parameters}
        largest = max(rates.values())
        assert {name: rate / largest for name, rate in rates.items()} == pytest.approx(scales)
        factors.add(largest)
        if metalr.due and not streaming:
            optimizer.zero_grad()
            mse_loss(net(x), y).backward()
            metalr.adapt()
    assert len(factors) == 15, "the factor is learned"
    assert metalr.lrs == pytest.approx({name: scale * max(metalr.lrs.values()) for name, scale in scales.items()})


def vector(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().clone().flatten() for tensor in tensors])

"""Depth to scale: the static schemes of MetaLR's tables."""

import math
import warnings
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from layertune import (
    AllLayers,
    BiDirectional,
    InverseSize,
    LastLayer,
    Layer,
    LayerDecay,
    LayerMap,
    LayerWise,
    OptimizerError,
    PolicyError,
    UNetScheme,
    bidirectional_grid,
    freeze,
    map_layers,
    param_groups,
)
from layertune.policies.policies import Policy, scales_of
from small_networks import SmallResNet, SmallUNet, image, networks


def line(d: int) -> LayerMap:
    roles = ["encoder"] * (d - 1) + ["head"]
    layers = (Layer(f"l{i}", (f"l{i}.weight",), i, role, 0) for i, role in enumerate(roles, 1))
    return LayerMap(tuple(layers), "I1", "block")


def u(depth: str = "I1") -> LayerMap:
    """Levels 0, 1, 2, 1, 0 and the head."""
    return map_layers(SmallUNet(), image(), depth=depth)


def test_all_layers_and_the_last_layer():
    assert AllLayers()(line(4)) == [1, 1, 1, 1]
    assert LastLayer()(line(4)) == [0, 0, 0, 1]
    assert LastLayer()(u("I2")) == [0, 0, 0, 0, 0, 1]


def test_layer_wise_tunes_from_a_depth_on():
    assert [LayerWise(first)(line(3)) for first in (1, 2, 3)] == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert LayerWise(2)(u("I2")) == [0, 1, 1, 1, 0, 1]
    assert LayerWise(1)(line(5)) == AllLayers()(line(5))
    assert LayerWise(5)(line(5)) == LastLayer()(line(5))


def test_bi_directional_freezes_from_m_to_n():
    assert BiDirectional(2, 3)(line(5)) == [1, 0, 0, 1, 1]
    assert BiDirectional(2, 2)(u("I2")) == [1, 0, 1, 0, 1, 1], "both paths of level 2"
    assert BiDirectional(1, 4)(line(5)) == LastLayer()(line(5))


def test_resnet_18_has_the_papers_45_settings():
    layers = map_layers(SmallResNet(), image())
    grid = bidirectional_grid(layers.d)
    assert len(grid) == 45
    assert len({tuple(scales_of(layers, BiDirectional(m, n))) for m, n in grid}) == 45


@pytest.mark.parametrize("depth", ["I1", "I2"])
def test_the_settings_of_a_u_under_both_readings(depth: str):
    layers = u(depth)
    grid = bidirectional_grid(layers.d)
    assert len(grid) == layers.d * (layers.d - 1) // 2
    for m, n in grid:
        scales = scales_of(layers, BiDirectional(m, n))
        assert [layer.depth for layer, scale in zip(layers, scales, strict=True) if not scale] == [
            layer.depth for layer in layers if m <= layer.depth <= n
        ]
        assert scales[-1] == 1


@given(d=st.integers(2, 60))
def test_the_grid_is_every_pair_once(d: int):
    grid = bidirectional_grid(d)
    assert len(set(grid)) == len(grid) == d * (d - 1) // 2
    assert all(1 <= m <= n < d for m, n in grid)


@given(d=st.integers(1, 30), rate=st.floats(0.1, 1))
def test_layer_decay_falls_by_its_rate_from_the_head(d: int, rate: float):
    scales = LayerDecay(rate)(line(d))
    assert scales[-1] == 1
    assert all(math.isclose(a, rate * b) for a, b in pairwise(scales))


def test_layer_decay_is_timms():
    import timm
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("test_vit", num_classes=3)
    from timm.models import group_parameters

    numbers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    layers = map_layers(model, matcher=numbers.__getitem__)
    ours = {
        id(p): group["lr"]
        for group in param_groups(model, layers, lr=1.0, policy=LayerDecay(0.75))
        for p in group["params"]
    }
    theirs = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.75) for p in group["params"]
    }
    assert ours.keys() == theirs.keys()
    assert all(math.isclose(ours[key], theirs[key]) for key in ours)


def test_the_parts_of_a_u():
    assert UNetScheme("contracting")(u()) == [1, 1, 1, 0, 0, 1]
    assert UNetScheme("expanding")(u()) == [0, 0, 0, 1, 1, 1]
    assert UNetScheme("top-down", levels=1)(u()) == [1, 0, 0, 0, 1, 1]
    assert UNetScheme("top-down", levels=2)(u()) == [1, 1, 0, 1, 1, 1]
    assert UNetScheme("bottom-up", levels=1)(u()) == [0, 0, 1, 0, 0, 1]
    assert UNetScheme("bottom-up", levels=3)(u()) == AllLayers()(u())
    assert UNetScheme("contracting")(u("I2")) == UNetScheme("contracting")(u())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=networks(), data=st.data())
def test_a_policy_gives_one_scale_a_layer_and_the_groups_hold_what_it_tunes(net: nn.Module, data: st.DataObject):
    layers = map_layers(net, image())
    policies = [AllLayers(), LastLayer(), LayerDecay(0.5), LayerWise(data.draw(st.integers(1, layers.d)))]
    policies.append(InverseSize(data.draw(st.floats(0, 2))))
    if layers.d > 1:
        policies.append(BiDirectional(*data.draw(st.sampled_from(bidirectional_grid(layers.d)))))
    policy = data.draw(st.sampled_from(policies))
    scales = scales_of(layers, policy)
    groups = param_groups(net, layers, lr=1.0, policy=policy, weight_decay=data.draw(st.sampled_from([0.0, 0.1])))
    tuned = [name for layer, scale in zip(layers, scales, strict=True) if scale for name in layer.parameters]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    parameters = dict(net.named_parameters())
    assert sorted(grouped) == sorted(id(parameters[name]) for name in tuned)
    assert {group["layer"]: group["lr"] for group in groups} == {
        layer.name: scale for layer, scale in zip(layers, scales, strict=True) if scale
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the policy freezes none")
        with freeze(net, layers, policy):
            assert {name for name, p in net.named_parameters() if p.requires_grad} == set(tuned)
    assert all(parameter.requires_grad for parameter in net.parameters())


# One clear error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BiDirectional(3, 2), r"BiDirectional\(m=3, n=2\) freezes depths m to n and needs 1 <= m <= n"),
        (lambda: BiDirectional(0, 2), r"needs 1 <= m <= n"),
        (lambda: BiDirectional(1, 2.5), r"n=2.5\): a depth is a whole number"),
        (lambda: LayerWise("2"), r"first='2'\): a depth is a whole number"),
        (lambda: LayerDecay(0), "must be above 0 and at most 1"),
        (lambda: LayerDecay(1.1), "must be above 0 and at most 1"),
        (lambda: LayerDecay(math.nan), "must be above 0 and at most 1"),
        (lambda: UNetScheme("left"), "choose 'contracting' or 'expanding'"),
        (lambda: UNetScheme("contracting", levels=1), "without levels"),
        (lambda: UNetScheme("top-down"), "with levels from 1"),
        (lambda: UNetScheme("top-down", levels=0), "with levels from 1"),
        (lambda: bidirectional_grid(1), "d must be at least 2"),
    ],
)
def test_numbers_that_fit_no_network(make, message: str):
    with pytest.raises(PolicyError, match=message):
        make()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (BiDirectional(2, 5), r"n must be below d = 5, the head of this network, which is always tuned"),
        (LayerWise(6), "this network has depths 1 to 5"),
        (LayerWise(0), "this network has depths 1 to 5"),
        (UNetScheme("contracting"), "needs a network with an expanding path"),
        ("last", r"a policy is LastLayer\(\), .* not 'last'"),
        (lambda layers: [0.0] * len(layers), "freezes all 5 layers and leaves nothing to train"),
        (lambda _: [1.0], "one finite scale >= 0 for each of the 5 layers"),
        (lambda _: [1.0, 1.0, 1.0, 1.0, -1.0], "one finite scale"),
        (lambda _: [1.0, 1.0, 1.0, 1.0, math.nan], "one finite scale"),
        (lambda _: [1.0, 1.0, 1.0, 1.0, math.inf], "one finite scale"),
    ],
)
def test_policies_that_do_not_fit_the_network(policy: Policy, message: str):
    with pytest.raises(PolicyError, match=message):
        scales_of(line(5), policy)


def test_more_levels_than_the_u_has():
    with pytest.raises(PolicyError, match="this network has 3 levels"):
        scales_of(u(), UNetScheme("bottom-up", levels=4))


def test_a_policy_that_was_not_called_is_told_so():
    net = SmallResNet()
    with pytest.raises(PolicyError, match="LastLayer is a function that makes a policy"):
        param_groups(net, map_layers(net, image()), lr=0.1, policy=LastLayer)


def test_a_negative_learning_rate_is_refused():
    net = SmallResNet()
    with pytest.raises(OptimizerError, match="lr=-1"):
        param_groups(net, map_layers(net, image()), lr=-1.0)

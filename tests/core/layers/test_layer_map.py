"""Every parameter in exactly one layer, in the order of execution, with the depths of I1 and I2."""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from layertune import Layer, LayerMap, ModelError, map_layers
from layertune.layers.layer import parameters_by_layer
from layertune.layers.names import named_parameters
from small_networks import Shared, SmallResNet, SmallTransformer, SmallUNet, image, networks


def names(layers: LayerMap) -> list[str]:
    return [layer.name for layer in layers]


def test_a_u_by_blocks():
    layers = map_layers(SmallUNet(), image())
    assert [(layer.name, layer.depth, layer.role, layer.level) for layer in layers] == [
        ("down.0", 1, "encoder", 0),
        ("down.1", 2, "encoder", 1),
        ("down.2", 3, "bottleneck", 2),
        ("merge.0", 4, "decoder", 1),
        ("merge.1", 5, "decoder", 0),
        ("heads.1", 6, "head", 0),
    ]
    assert layers.d == 6
    assert layers.has_decoder
    assert layers.head is layers[-1]
    assert layers.layer_of("up.0.bias").name == "merge.0"
    assert layers.unused == ("heads.0.weight", "heads.0.bias")
    assert layers.layer_of("heads.0.bias").role == "head", "an unused head belongs to the head"


def test_a_u_by_resolution_levels():
    layers = map_layers(SmallUNet(), image(), depth="I2")
    assert names(layers) == names(map_layers(SmallUNet(), image()))
    assert [layer.depth for layer in layers] == [1, 2, 3, 2, 1, 4]
    assert layers.d == 4
    assert layers.interpretation == "I2"


def test_deep_supervision_is_one_head():
    layers = map_layers(SmallUNet(deep_supervision=True), image())
    assert layers.head.name == "heads"
    assert layers.head.parameters == ("heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias")
    assert layers.unused == ()


def test_a_u_by_modules_and_by_stages():
    modules = map_layers(SmallUNet((2, 4)), image(), granularity="module")
    assert names(modules) == [
        "down.0.0",
        "down.0.3",
        "down.1.0",
        "down.1.3",
        "up.0",
        "merge.0.0",
        "merge.0.3",
        "heads.0",
    ]
    assert modules[0].parameters == ("down.0.0.weight", "down.0.0.bias", "down.0.1.weight", "down.0.1.bias")
    stages = map_layers(SmallResNet(), image(), granularity="stage")
    assert [(layer.name, len(layer.parameters)) for layer in stages][:2] == [("stem.0", 4), ("blocks", 12)]
    assert [layer.level for layer in stages] == [0, 0, 1, 2, 3, 3]


def test_a_residual_network_has_nine_blocks_and_a_classifier():
    layers = map_layers(SmallResNet(), image())
    assert names(layers) == ["stem.0", *(f"blocks.{index}" for index in range(8)), "fc"]
    assert layers[3].parameters[-2:] == ("blocks.2.shortcut.weight", "blocks.2.shortcut.bias")
    assert not layers.has_decoder


@pytest.mark.parametrize("low_rank", [False, True])
def test_tokens_and_positions_lie_with_the_patches_and_the_last_norm_with_the_last_block(low_rank: bool):
    layers = map_layers(SmallTransformer(low_rank), torch.empty(2, 1, 8, 8))
    assert names(layers) == ["patch_embed", "blocks.0", "blocks.1", "head"]
    assert set(layers[0].parameters) == {"cls_token", "pos_embed", "patch_embed.weight", "patch_embed.bias"}
    assert layers.layer_of("norm.weight").name == "blocks.1"
    assert layers.layer_of("blocks.1.norm1.weight").name == "blocks.1"
    assert layers.layer_of("blocks.0.attention.in_proj_weight").name == "blocks.0"


def test_a_shared_weight_belongs_to_the_first_layer_that_runs_it_and_an_unused_one_to_its_neighbours():
    net = Shared()
    layers = map_layers(net, image())
    assert layers.layer_of("twice.weight").name == "twice"
    assert layers.unused == ("auxiliary.weight", "auxiliary.bias")
    assert layers.layer_of("auxiliary.weight").role == "head"
    assert Counter(name for layer in layers for name in layer.parameters) == Counter(
        dict(net.named_parameters()).keys()
    )


def test_a_layer_whose_weights_all_belong_to_an_earlier_one_is_left_out():
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10, bias=False))
    net[3].weight = net[0].weight
    layers = map_layers(net, torch.zeros(2, 5, dtype=torch.long))
    assert [(layer.name, layer.role) for layer in layers] == [("0", "encoder"), ("1", "head")]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=networks())
def test_every_parameter_is_in_exactly_one_layer(net: nn.Module):
    for granularity in ("module", "block", "stage"):
        layers = map_layers(net, image(), granularity=granularity)
        placed = [name for layer in layers for name in layer.parameters]
        assert Counter(placed) == Counter(name for name, _ in net.named_parameters())
        assert len(set(names(layers))) == len(layers)
        assert all(layer.name and layer.parameters for layer in layers)
        assert [layer.depth for layer in layers] == list(range(1, len(layers) + 1))
        assert [layer.role for layer in layers].count("head") == 1
        path = {"encoder": 0, "bottleneck": 1, "decoder": 2, "head": 3}
        order = [path[layer.role] for layer in layers]
        assert order == sorted(order)
        assert layers.has_decoder == isinstance(net, SmallUNet)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=networks())
def test_finer_layers_nest_in_coarser_ones(net: nn.Module):
    fine, middle, coarse = (map_layers(net, image(), granularity=g) for g in ("module", "block", "stage"))
    for inner, outer in ((fine, middle), (middle, coarse)):
        assert all(len({outer.layer_of(name).name for name in layer.parameters}) == 1 for layer in inner)


def test_a_matcher_stands_for_an_example_input():
    layers = map_layers(SmallResNet(), matcher=lambda name: {"stem": 0, "fc": 30}.get(name.split(".")[0], 7))
    assert [(layer.name, layer.depth, layer.role, layer.level) for layer in layers] == [
        ("stem", 1, "encoder", None),
        ("blocks", 2, "encoder", None),
        ("fc", 3, "head", None),
    ]
    odd_and_even = map_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), matcher=lambda name: "bias" in name)
    assert len(set(names(odd_and_even))) == 2


def test_a_map_is_a_sequence():
    layers = map_layers(SmallUNet(), image())
    assert len(layers) == len(list(layers)) == 6
    assert [layer.depth for layer in layers[1:3]] == [2, 3]
    assert layers[0] in layers
    assert layers == map_layers(SmallUNet(), image())


def test_a_model_under_compile_has_the_same_map():
    assert map_layers(torch.compile(SmallUNet()), image()) == map_layers(SmallUNet(), image())
    assert list(named_parameters(torch.compile(SmallUNet()))) == list(dict(SmallUNet().named_parameters()))


# One clear error


def test_i2_without_a_decoder():
    with pytest.raises(ModelError, match=r"this network has no decoder.*use depth='I1'"):
        map_layers(SmallResNet(), image(), depth="I2")
    with pytest.raises(ModelError, match="a matcher does not know"):
        map_layers(SmallUNet(), matcher=len, depth="I2")


def test_no_example_input():
    with pytest.raises(ModelError, match="needs an example input to run SmallUNet once"):
        map_layers(SmallUNet())


@pytest.mark.parametrize("wrong", [{"granularity": "neuron"}, {"depth": "I3"}])
def test_an_unknown_option(wrong: dict[str, str]):
    with pytest.raises(ModelError, match="granularity is module, block or stage and depth I1 or I2, not"):
        map_layers(SmallUNet(), image(), **wrong)
    with pytest.raises(ModelError, match="granularity is module, block or stage and depth I1 or I2, not"):
        map_layers(SmallUNet(), matcher=len, **wrong)


def test_a_parameter_or_a_map_of_another_network():
    net, other = SmallUNet(), SmallResNet()
    layers = map_layers(other, image())
    with pytest.raises(ModelError, match=r"'merge.0.0.weight'; the map was made of another network"):
        layers.layer_of("merge.0.0.weight")
    with pytest.raises(
        ModelError, match=r"does not fit SmallUNet: in no layer \['down.0.0.bias'.*not in the model \['bl"
    ):
        parameters_by_layer(net, layers)
    twice = LayerMap((*layers, Layer("again", ("fc.bias",), 11, "head")), "I1", "block")
    with pytest.raises(ModelError, match=r"in two layers \['fc.bias'\]"):
        parameters_by_layer(other, twice)


def test_parameters_by_layer_are_the_models_own():
    net = SmallUNet()
    held = parameters_by_layer(net, map_layers(net, image()))
    assert list(held) == ["down.0", "down.1", "down.2", "merge.0", "merge.1", "heads.1"]
    assert {id(p) for part in held.values() for p in part} == {id(p) for p in net.parameters()}


def test_two_outputs_and_a_trunk_of_the_same_path_have_names_of_their_own():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
            self.cls, self.reg = nn.Linear(4, 2), nn.Linear(4, 1)

        def forward(self, x):
            h = self.head(self.stem(x)).mean((2, 3))
            return self.cls(h), self.reg(h)

    layers = map_layers(TwoHeads(), torch.empty(1, 1, 12, 12))
    assert [(layer.name, len(layer.parameters)) for layer in layers] == [("stem", 2), ("head", 2), ("cls", 4)]
    wrapped = nn.Module()
    wrapped.net = TwoHeads()
    wrapped.forward = wrapped.net.__call__
    stages = map_layers(wrapped, torch.empty(1, 1, 12, 12), granularity="stage")
    assert len({layer.name for layer in stages}) == len(stages)
    assert sum(len(layer.parameters) for layer in stages) == 8


def test_a_model_without_parameters_is_refused_with_a_matcher_too():
    with pytest.raises(ModelError, match="no parameters"):
        map_layers(nn.ReLU(), matcher=lambda _: 0)

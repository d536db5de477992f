"""The core's maps of timm's networks have the paper's blocks and timm's own order."""

from collections import Counter
from itertools import pairwise

import pytest
import timm
import torch
from timm.models import group_parameters

from layertune import ModelError, bidirectional_grid, map_layers, trace

DEPTHS = {
    "resnet18": 1 + 8 + 1,
    "resnet50": 1 + 16 + 1,
    "densenet121": 1 + 58 + 1,
    "efficientnet_b0": 1 + 16 + 1 + 1,
    "vit_tiny_patch16_224": 1 + 12 + 1,
    "convnext_tiny": 1 + 18 + 1,
    "swin_tiny_patch4_window7_224": 1 + 12 + 1,
}
QUICK = {"resnet18", "resnet50", "vit_tiny_patch16_224"}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DEPTHS]


@pytest.fixture(scope="module", params=NAMES)
def named(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    return request.param, made(request.param)


def made(name: str, **options: int) -> torch.nn.Module:
    """A model without weights: a map needs none."""
    with torch.device("meta"):
        return timm.create_model(name, **options)


def image() -> torch.Tensor:
    return torch.empty(2, 3, 224, 224)


def test_resnet18_has_the_papers_nine_blocks_and_the_classifier():
    layers = map_layers(made("resnet18"), image())
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [layer.name for layer in layers] == ["conv1", *blocks, "fc"]
    assert layers[0].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert len(bidirectional_grid(layers.d)) == 45
    with pytest.raises(ModelError, match="has no decoder"):
        map_layers(made("resnet18"), image(), depth="I2")


def test_every_parameter_is_in_one_layer_and_there_is_no_decoder(named: tuple[str, torch.nn.Module]):
    name, model = named
    layers = map_layers(model, image())
    assert len(layers) == DEPTHS[name]
    placed = [parameter for layer in layers for parameter in layer.parameters]
    assert Counter(placed) == Counter(dict(model.named_parameters()).keys())
    assert not layers.has_decoder
    assert layers.unused == ()
    classifier = {f"{model.pretrained_cfg['classifier']}.{kind}" for kind in ("weight", "bias")}
    assert classifier <= set(layers.head.parameters)


@pytest.mark.parametrize("granularity", ["module", "block"])
def test_the_order_agrees_with_timms_group_matcher(named: tuple[str, torch.nn.Module], granularity: str):
    _, model = named
    layers = map_layers(model, image(), granularity=granularity)
    ours = {parameter: index for index, layer in enumerate(layers) for parameter in layer.parameters}
    for coarse in (False, True):
        theirs = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert theirs.keys() == ours.keys()
        places: dict[int, list[int]] = {}
        for name, number in theirs.items():
            places.setdefault(number, []).append(ours[name])
        in_order = [places[number] for number in sorted(places)]
        assert all(max(before) <= min(after) for before, after in pairwise(in_order))


def test_norms_follow_their_convolutions_or_stand_before_them():
    resnet = trace(made("resnet18"), image()).norms
    assert len(resnet) == 20
    assert resnet["layer2.0.downsample.1"] == "layer2.0.downsample.0"
    assert None not in resnet.values()
    efficientnet = trace(made("efficientnet_b0"), image()).norms
    assert efficientnet["blocks.1.0.bn2"] == "blocks.1.0.conv_dw"
    assert None not in efficientnet.values()
    vit = trace(made("vit_tiny_patch16_224", depth=2), image()).norms
    assert set(vit.values()) == {None}
    convnext = trace(made("convnext_tiny"), image()).norms
    assert convnext["stem.1"] == "stem.0"
    assert convnext["stages.0.blocks.0.norm"] == "stages.0.blocks.0.conv_dw"
    assert convnext["stages.1.downsample.0"] is None
    densenet = trace(made("densenet121"), image()).norms
    assert densenet["features.norm0"] == "features.conv0"
    assert densenet["features.denseblock1.denselayer1.norm1"] is None
    assert densenet["features.denseblock1.denselayer1.norm2"] == "features.denseblock1.denselayer1.conv1"


def test_tokens_gates_and_last_norms_belong_to_their_layers():
    vit = map_layers(made("vit_tiny_patch16_224", depth=2), image())
    assert {"cls_token", "pos_embed"} <= set(vit[0].parameters)
    assert vit.layer_of("norm.weight").name == "blocks.1"
    efficientnet = map_layers(made("efficientnet_b0"), image())
    assert efficientnet.layer_of("blocks.1.0.se.conv_reduce.weight").name == "blocks.1.0"
    assert [layer.level for layer in efficientnet[:4]] == [0, 0, 1, 1]

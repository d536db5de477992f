"""The core's maps of nnU-Net's networks."""

from collections import Counter
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures import unet
from torch import nn

from layertune import map_layers, trace

LEVELS = 4
BLOCKS = (1, 3, 4, 2)


def build(kind: str, dim: int, deep_supervision: bool = True, convolutions: int = 2) -> nn.Module:
    common: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": LEVELS,
        "features_per_stage": (2, 4, 8, 8),
        "conv_op": nn.Conv3d if dim == 3 else nn.Conv2d,
        "kernel_sizes": 3,
        "strides": (1, 2, 2, 2),
        "num_classes": 3,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d if dim == 3 else nn.InstanceNorm2d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": deep_supervision,
    }
    if kind == "plain":
        return unet.PlainConvUNet(**common, n_conv_per_stage=convolutions, n_conv_per_stage_decoder=convolutions)
    return unet.ResidualEncoderUNet(**common, n_blocks_per_stage=BLOCKS, n_conv_per_stage_decoder=1)


def image(dim: int) -> torch.Tensor:
    return torch.empty(2, 1, *(32,) * dim)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("convolutions", "tail"), [(1, ".0.conv"), (2, "")])
def test_plain_conv_unet(dim: int, deep_supervision: bool, convolutions: int, tail: str):
    net = build("plain", dim, deep_supervision, convolutions)
    layers = map_layers(net, image(dim))
    assert [(layer.name, layer.role, layer.level) for layer in layers] == [
        (f"encoder.stages.0.0.convs{tail}", "encoder", 0),
        (f"encoder.stages.1.0.convs{tail}", "encoder", 1),
        (f"encoder.stages.2.0.convs{tail}", "encoder", 2),
        (f"encoder.stages.3.0.convs{tail}", "bottleneck", 3),
        (f"decoder.stages.0.convs{tail}", "decoder", 2),
        (f"decoder.stages.1.convs{tail}", "decoder", 1),
        (f"decoder.stages.2.convs{tail}", "decoder", 0),
        ("decoder.seg_layers" if deep_supervision else "decoder.seg_layers.2", "head", 0),
    ]
    assert [layer.depth for layer in map_layers(net, image(dim), depth="I2")] == [1, 2, 3, 4, 3, 2, 1, 5]
    assert layers.layer_of("decoder.transpconvs.1.weight").name == layers[5].name
    assert {name for name in dict(net.named_parameters()) if "seg_layers" in name} == set(layers.head.parameters)
    assert len(layers.unused) == (0 if deep_supervision else 4)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("dim", [2, 3])
def test_residual_encoder_unet(dim: int, deep_supervision: bool):
    net = build("residual", dim, deep_supervision)
    layers = map_layers(net, image(dim))
    encoder = [(f"encoder.stages.{s}.blocks.{b}", "encoder", s) for s, count in enumerate(BLOCKS) for b in range(count)]
    assert [(layer.name, layer.role, layer.level) for layer in layers] == [
        ("encoder.stem.convs.0.conv", "encoder", 0),
        *encoder[:-1],
        ("encoder.stages.3.blocks.1", "bottleneck", 3),
        ("decoder.stages.0.convs.0.conv", "decoder", 2),
        ("decoder.stages.1.convs.0.conv", "decoder", 1),
        ("decoder.stages.2.convs.0.conv", "decoder", 0),
        ("decoder.seg_layers" if deep_supervision else "decoder.seg_layers.2", "head", 0),
    ]
    stages = map_layers(net, image(dim), granularity="stage")
    assert [layer.level for layer in stages] == [0, 0, 1, 2, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_every_parameter_is_in_one_layer_and_every_norm_is_paired(kind: str):
    net = build(kind, 3)
    for granularity in ("module", "block", "stage"):
        layers = map_layers(net, image(3), granularity=granularity)
        placed = [name for layer in layers for name in layer.parameters]
        assert Counter(placed) == Counter(dict(net.named_parameters()).keys())
    norms = trace(net, image(3)).norms
    assert len(norms) == sum(isinstance(module, nn.InstanceNorm3d) for module in set(net.modules()))
    assert all(operation == f"{norm.removesuffix('.norm')}.conv" for norm, operation in norms.items())

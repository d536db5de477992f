"""The layers of MONAI's networks, compared with maps that were drawn by hand."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from monai.networks import nets
from torch import nn

from layertune import map_layers, trace

WIDTHS = (4, 8, 16, 32)

# Each layer is written as 'name role level', with the first letter of its role; then follow the depths by I2.
DRAWN: dict[str, tuple[Callable[[], nn.Module], str, list[int]]] = {
    "UNet": (
        lambda: nets.UNet(3, 1, 2, WIDTHS, (2, 2, 2)),
        """model.0.conv e 1
        model.1.submodule.0.conv e 2
        model.1.submodule.1.submodule.0.conv e 3
        model.1.submodule.1.submodule.1.submodule.conv b 3
        model.1.submodule.1.submodule.2.conv d 2
        model.1.submodule.2.conv d 1
        model.2.conv h 0""",
        [1, 2, 3, 3, 2, 1, 4],
    ),
    "UNet, residual": (
        lambda: nets.UNet(3, 1, 2, WIDTHS, (2, 2, 2), num_res_units=2, norm="batch"),
        """model.0 e 1
        model.1.submodule.0 e 2
        model.1.submodule.1.submodule.0 e 3
        model.1.submodule.1.submodule.1.submodule b 3
        model.1.submodule.1.submodule.2.1 d 2
        model.1.submodule.2.1 d 1
        model.2.0.conv d 0
        model.2.1.conv.unit0.conv h 0""",
        [2, 3, 4, 4, 3, 2, 1, 5],
    ),
    "DynUNet": (
        lambda: nets.DynUNet(
            3, 1, 3, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=[4] * 5, deep_supervision=True, deep_supr_num=2
        ),
        """input_block e 0
        downsamples.0 e 1
        downsamples.1 e 2
        downsamples.2 e 3
        bottleneck b 4
        upsamples.0 d 3
        upsamples.1 d 2
        upsamples.2 d 1
        upsamples.3 d 0
        head h 0""",
        [1, 2, 3, 4, 5, 4, 3, 2, 1, 6],
    ),
    "BasicUNet": (
        lambda: nets.BasicUNet(3, 1, 2, (4, 4, 8, 8, 16, 4)),
        """conv_0 e 0
        down_1.convs e 1
        down_2.convs e 2
        down_3.convs e 3
        down_4.convs b 4
        upcat_4 d 3
        upcat_3 d 2
        upcat_2 d 1
        upcat_1 d 0
        final_conv h 0""",
        [1, 2, 3, 4, 5, 4, 3, 2, 1, 6],
    ),
    "AttentionUnet": (
        lambda: nets.AttentionUnet(3, 1, 2, WIDTHS, (2, 2, 2)),
        """model.0.conv e 0
        model.1.submodule.0.conv e 1
        model.1.submodule.1.submodule.0.conv e 2
        model.1.submodule.1.submodule.1.submodule.conv b 3
        model.1.submodule.1.submodule.1.attention d 2
        model.1.submodule.1.submodule.1.merge.conv d 2
        model.1.submodule.1.attention d 1
        model.1.submodule.1.merge.conv d 1
        model.1.attention d 0
        model.1.merge.conv d 0
        model.2.conv h 0""",
        [1, 2, 3, 4, 3, 3, 2, 2, 1, 1, 5],
    ),
    "VNet": (
        lambda: nets.VNet(3, 1, 2),
        """in_tr e 0
        down_tr32 e 1
        down_tr64 e 2
        down_tr128 e 3
        down_tr256 b 4
        up_tr256 d 3
        up_tr128 d 2
        up_tr64 d 1
        up_tr32 d 0
        out_tr.conv_block.conv d 0
        out_tr.conv2 h 0""",
        [1, 2, 3, 4, 5, 4, 3, 2, 1, 1, 6],
    ),
    "SegResNet": (
        lambda: nets.SegResNet(3, 8, 1, 2),
        """convInit.conv e 0
        down_layers.0.1 e 0
        down_layers.1.1 e 1
        down_layers.1.2 e 1
        down_layers.2.1 e 2
        down_layers.2.2 e 2
        down_layers.3.1 e 3
        down_layers.3.2 e 3
        down_layers.3.3 e 3
        down_layers.3.4 b 3
        up_layers.0.0 d 2
        up_layers.1.0 d 1
        up_layers.2.0 d 0
        conv_final.2.conv h 0""",
        [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 3, 2, 1, 5],
    ),
    "UNETR": (
        lambda: nets.UNETR(1, 2, (64, 64, 64), feature_size=4, hidden_size=24, mlp_dim=24, num_heads=4),
        "vit.patch_embedding.patch_embeddings e 4\n"
        + "".join(f"vit.blocks.{index} e 4\n" for index in range(11))
        + """encoder1.layer e 0
        encoder2.blocks.0.1 e 2
        encoder2.blocks.1.1 e 1
        encoder3.blocks.0.1 e 2
        encoder4.transp_conv_init.conv e 3
        vit.blocks.11 b 4
        decoder5.conv_block d 3
        decoder4.conv_block d 2
        decoder3.conv_block d 1
        decoder2.conv_block d 0
        out.conv.conv h 0""",
        [5] * 12 + [1, 3, 2, 3, 4, 5, 4, 3, 2, 1, 6],
    ),
    "SwinUNETR": (
        lambda: nets.SwinUNETR(1, 2, feature_size=12),
        "swinViT.patch_embed.proj e 1\n"
        + "".join(f"swinViT.layers{i}.0.blocks.{b} e {i}\n" for i in range(1, 5) for b in (0, 1))
        + """encoder1.layer e 0
        encoder2.layer e 1
        encoder3.layer e 2
        encoder4.layer e 3
        encoder10.layer b 5
        decoder5.conv_block d 4
        decoder4.conv_block d 3
        decoder3.conv_block d 2
        decoder2.conv_block d 1
        decoder1.conv_block d 0
        out.conv.conv h 0""",
        [2, 2, 2, 3, 3, 4, 4, 5, 5, 1, 2, 3, 4, 6, 5, 4, 3, 2, 1, 7],
    ),
}


SLOW = {"SwinUNETR", "UNETR", "VNet"}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in DRAWN]


@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_the_one_that_was_drawn(name: str):
    build, drawing, levels_first = DRAWN[name]
    net, image = build(), torch.empty(2, 1, 64, 64, 64)
    layers = map_layers(net, image)
    assert [f"{layer.name} {layer.role[0]} {layer.level}" for layer in layers] == [
        line.strip() for line in drawing.strip().split("\n")
    ]
    assert [layer.depth for layer in layers] == list(range(1, len(layers) + 1))
    placed = [parameter for layer in layers for parameter in layer.parameters]
    assert Counter(placed) == Counter(dict(net.named_parameters()).keys())
    by_level = map_layers(net, image, depth="I2")
    assert [layer.depth for layer in by_level] == levels_first


def test_a_residual_dynunet_has_the_layers_of_a_plain_one():
    net = nets.DynUNet(3, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4] * 4, res_block=True)
    layers = map_layers(net, torch.empty(2, 1, 32, 32, 32))
    assert [layer.name for layer in layers] == [
        "input_block", "downsamples.0", "downsamples.1", "bottleneck", "upsamples.0", "upsamples.1", "upsamples.2",
        "output_block.conv.conv",
    ]  # fmt: skip


@pytest.mark.slow
def test_activation_checkpointing_does_not_change_the_map():
    image = torch.empty(1, 1, 64, 64, 64)
    plain, checkpointed = (nets.SwinUNETR(1, 2, feature_size=12, use_checkpoint=use) for use in (False, True))
    assert map_layers(checkpointed, image) == map_layers(plain, image)


def test_norms_before_their_convolutions_are_unpaired():
    norms = trace(nets.SegResNet(3, 8, 1, 2), torch.empty(2, 1, 32, 32, 32)).norms
    assert norms["down_layers.0.1.norm1"] is None, "the first convolution feeds the shortcut too"
    assert norms["down_layers.0.1.norm2"] == "down_layers.0.1.conv1.conv"
    assert norms["conv_final.0"] is None


def test_norms_after_their_convolutions_are_paired():
    norms = trace(nets.UNet(3, 1, 2, WIDTHS, (2, 2, 2), norm="batch", dropout=0.2), torch.empty(2, 1, 32, 32, 32)).norms
    assert len(norms) == 6
    assert all(operation == f"{norm.removesuffix('.adn.N')}.conv" for norm, operation in norms.items())


def test_layers_name_the_layers_that_read_them():
    plain = map_layers(nets.UNet(3, 1, 2, WIDTHS, (2, 2, 2)), torch.empty(1, 1, 32, 32, 32))
    depth = {layer.name: layer.depth for layer in plain}
    # The shapes of the weights show it: the decoder's layers take 8 + 8, 16 + 16 and 32 + 16 channels.
    assert [[depth[name] for name in layer.feeds] for layer in plain] == [[2, 7], [3, 6], [4, 5], [5], [6], [7], []]

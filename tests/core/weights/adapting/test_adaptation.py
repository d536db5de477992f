"""Weights that fit in part: what the network computed before, it computes after each adaptation."""

from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.networks.nets import resnet18
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn
from torchvision.models import resnet18 as resnet18_2d

from layertune import WeightsError, load_weights
from small_networks import SmallUNet


def stem(channels: int, classes: int = 3) -> nn.Module:
    """A network that reads its image twice, as SwinUNETR does."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(channels, 4, 3, padding=1)
            self.skip = nn.Conv2d(channels, 4, 1)
            self.inner = nn.Conv2d(4, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Conv2d(4, classes, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.norm(self.inner(torch.relu(self.first(x))))) + self.skip(x))

    return Net().eval()


@pytest.mark.parametrize("way", ["zero_channels", "repeat_channels", "average_channels"])
@pytest.mark.parametrize("channels", [4, 5, 7])
def test_old_channels_give_what_they_gave(way: str, channels: int) -> None:
    old, new, image = stem(3), stem(channels), torch.randn(2, 3, 8, 8)
    loaded = load_weights(new, old.state_dict(), adapt=way)
    assert not loaded.missing
    assert set(loaded.adapted) == {"first.weight", "skip.weight"}
    assert loaded.adapted["first.weight"].startswith(f"input channels 3 -> {channels} (new ones ")
    others = torch.randn(2, channels - 3, 8, 8) if way == "zero_channels" else torch.zeros(2, channels - 3, 8, 8)
    torch.testing.assert_close(new(torch.cat([image, others], 1)), old(image))
    if way == "repeat_channels":
        assert torch.equal(new.first.weight[:, 3], old.first.weight[:, 0])
    if way == "average_channels":
        assert torch.equal(new.first.weight[:, 3], old.first.weight.mean(1))


@pytest.mark.parametrize("way", ["zero_channels", "repeat_channels", "average_channels", "rescale_channels"])
def test_a_gray_image_gives_what_it_gave_in_three_equal_channels(way: str) -> None:
    old, new, image = stem(3), stem(1), torch.randn(2, 1, 8, 8)
    loaded = load_weights(new, old.state_dict(), adapt=way)
    assert loaded.adapted["first.weight"] == "input channels 3 -> 1 (their sum)"
    torch.testing.assert_close(new(image), old(image.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_rescaled_channels_are_those_of_timm(channels: int) -> None:
    old, new = stem(3), stem(channels)
    load_weights(new, old.state_dict(), adapt="rescale_channels")
    torch.testing.assert_close(new.first.weight.detach(), adapt_input_conv(channels, old.first.weight.detach().clone()))
    if channels in (1, 9):  # repeated whole, so equal channels give what they gave
        image = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(new(image.expand(-1, channels, -1, -1)), old(image.expand(-1, 3, -1, -1)))


def test_fewer_channels_that_are_not_one_stay_fresh_unless_they_are_rescaled() -> None:
    loaded = load_weights(stem(2), stem(3).state_dict(), adapt="zero_channels")
    assert not loaded.adapted
    assert loaded.missing["first.weight"] == (
        "shape (4, 3, 3, 3) against (4, 2, 3, 3), and no adaptation that is asked for makes it fit"
    )


def test_inner_layers_of_other_widths_are_not_taken_for_input_channels() -> None:
    old, new = (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(6, 4, 1)),
    )
    loaded = load_weights(new, old.state_dict(), adapt=["zero_channels", "classes"], allow_partial=True)
    assert not loaded.adapted


def test_nothing_is_adapted_unasked() -> None:
    old, new = stem(3, classes=2), stem(4, classes=5)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    loaded = load_weights(new, old.state_dict())
    assert not loaded.adapted
    assert set(loaded.missing) == {"first.weight", "skip.weight", "head.weight", "head.bias"}
    assert loaded.missing["first.weight"] == "shape (4, 3, 3, 3) against (4, 4, 3, 3)"
    assert all(torch.equal(new.state_dict()[name], before[name]) for name in loaded.missing)


def test_old_classes_keep_their_rows_and_new_ones_are_fresh() -> None:
    old, new, image = stem(3, classes=2), stem(3, classes=5), torch.randn(2, 3, 8, 8)
    fresh = new.head.weight.detach().clone()
    loaded = load_weights(new, old.state_dict(), adapt="classes")
    assert set(loaded.adapted) == {"head.weight", "head.bias"}
    torch.testing.assert_close(new(image)[:, :2], old(image))
    assert torch.equal(new.head.weight[2:], fresh[2:])
    loaded = load_weights(stem(3, classes=2), stem(3, classes=5).state_dict(), adapt="classes")
    assert set(loaded.missing) == {"head.weight", "head.bias"}, "classes are added and never removed"


def test_all_heads_for_deep_supervision_get_classes() -> None:
    def network(classes: int) -> SmallUNet:
        net = SmallUNet(deep_supervision=True)
        net.heads = nn.ModuleList(nn.Conv2d(head.in_channels, classes, 1) for head in net.heads)
        return net.eval()

    old, new, image = network(2), network(4), torch.randn(1, 1, 16, 16)
    loaded = load_weights(new, old.state_dict(), adapt={"classes"})
    assert not loaded.missing
    for before, after in zip(old(image), new(image), strict=True):
        torch.testing.assert_close(after[:, :2], before)


def test_a_transposed_convolution_as_a_head_gets_classes() -> None:
    def network(classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, classes, 2, 2))

    old, new, image = network(2), network(3), torch.randn(1, 1, 8, 8)
    load_weights(new, old.state_dict(), adapt="classes")
    torch.testing.assert_close(new(image)[:, :2], old(image))


def conv_net(dims: int, kernel: Any = 3, up: Any = 2) -> nn.Module:
    """Down, up and a head, in 2D or 3D; edges are repeated, so a constant depth stays constant."""
    conv: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    transposed: Any = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    norm: Any = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    sizes = (kernel,) * dims if isinstance(kernel, int) else kernel
    padding = [size // 2 for size in sizes]
    net = nn.Sequential(
        conv(1, 4, sizes, padding=padding, padding_mode="replicate"),
        norm(4),
        nn.ReLU(),
        conv(4, 8, sizes, stride=up, padding=padding, padding_mode="replicate"),
        nn.ReLU(),
        transposed(8, 4, up, up),
        conv(4, 2, 1),
    )
    for name, tensor in net.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 2)
    return net.eval()


def test_a_2d_network_gives_the_same_in_3d_on_a_constant_depth() -> None:
    old, new, image = conv_net(2), conv_net(3), torch.randn(2, 1, 8, 8)
    loaded = load_weights(new, old.state_dict(), adapt="inflate")
    assert not loaded.missing
    assert loaded.adapted["0.weight"] == "2D kernel inflated 3x3 -> 3x3x3"
    volume = new(image[:, :, None].expand(-1, -1, 6, -1, -1))
    for depth in range(6):
        torch.testing.assert_close(volume[:, :, depth], old(image))


def test_an_isotropic_network_gives_the_same_with_flat_kernels_on_a_constant_depth() -> None:
    old, new = conv_net(3), conv_net(3, kernel=(1, 3, 3))
    image = torch.randn(2, 1, 1, 8, 8).expand(-1, -1, 6, -1, -1)
    loaded = load_weights(new, old.state_dict(), adapt="kernel_size")
    assert loaded.adapted["0.weight"] == "kernel 3x3x3 -> 1x3x3"
    torch.testing.assert_close(new(image), old(image))
    again = conv_net(3)
    load_weights(again, new.state_dict(), adapt="kernel_size")
    torch.testing.assert_close(again(image), old(image))


def test_upsampling_with_a_flat_kernel_averages_and_back_again_repeats() -> None:
    old, new = conv_net(3), conv_net(3, up=(1, 2, 2))
    load_weights(new, old.state_dict(), adapt="kernel_size")
    torch.testing.assert_close(new[5].weight.detach(), old[5].weight.detach().mean(2, keepdim=True))
    again, image = conv_net(3), torch.randn(2, 1, 1, 8, 8).expand(-1, -1, 6, -1, -1)
    load_weights(again, new.state_dict(), adapt="kernel_size")
    torch.testing.assert_close(again(image), new(image))


def test_imagenets_weights_go_into_a_3d_network_for_gray_images() -> None:
    old, new = resnet18_2d(), resnet18(spatial_dims=3, n_input_channels=1, shortcut_type="B", bias_downsample=False)
    with pytest.raises(WeightsError, match=r"tensors match, 0\.0\d+ % of the network's parameters"):
        load_weights(new, old.state_dict())
    loaded = load_weights(new, old.state_dict(), adapt=["inflate", "zero_channels"])
    assert set(loaded.missing) == {"fc.weight", "fc.bias"}
    assert loaded.adapted["conv1.weight"] == "2D kernel inflated 7x7 -> 7x7x7, input channels 3 -> 1 (their sum)"
    torch.testing.assert_close(new.conv1.weight.sum(2), old.conv1.weight.sum(1, keepdim=True))
    torch.testing.assert_close(new.layer4[1].conv2.weight.sum(2), old.layer4[1].conv2.weight)


VIT = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 4}


@pytest.mark.parametrize("arguments", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
def test_positions_are_interpolated_as_timm_does(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    def network(image: Any) -> nn.Module:
        return timm.models.vision_transformer.VisionTransformer(img_size=image, **VIT, **arguments).eval()

    old, new = network(64), network(size)
    loaded = load_weights(new, old.state_dict(), adapt="positions")
    assert not loaded.missing
    assert "(interpolated)" in loaded.adapted["pos_embed"]
    expected = resample_abs_pos_embed(
        old.pos_embed, list(new.patch_embed.grid_size), num_prefix_tokens=old.num_prefix_tokens
    )
    torch.testing.assert_close(new.pos_embed, expected)


def test_windows_of_another_size_interpolate_their_tables() -> None:
    def network(window: int) -> nn.Module:
        net: nn.Module = timm.models.swin_transformer.SwinTransformer(
            img_size=8 * window, patch_size=2, embed_dim=12, depths=(1, 1), num_heads=(1, 2), window_size=window
        )
        return net

    old, new = network(4), network(6)
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    table = dict(old.named_parameters())[name]
    nn.init.normal_(table)
    loaded = load_weights(new, old.state_dict(), adapt="positions")
    assert loaded.adapted[name] == "positions 49x1 -> 121x1 (interpolated)"
    expected = resize_rel_pos_bias_table_simple(table, (6, 6), (121, 1))
    torch.testing.assert_close(dict(new.named_parameters())[name], expected)


def unet(features: tuple[int, ...], classes: int = 2) -> PlainConvUNet:
    return PlainConvUNet(
        input_channels=1,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=(1,) + (2,) * (len(features) - 1),
        n_conv_per_stage=1,
        num_classes=classes,
        n_conv_per_stage_decoder=1,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.ReLU,
    )


def test_a_decoder_of_another_depth_is_never_loaded_one_stage_off() -> None:
    """Its deepest stages have equal widths, so by their names stage 0 would go where it does not belong."""
    old, new = unet((2, 4, 4, 4)), unet((2, 4, 4, 4, 4))
    before = {name: tensor.clone() for name, tensor in new.decoder.named_parameters() if "encoder" not in name}
    loaded = load_weights(new, old.state_dict(), min_share=0.3)
    decoder = {name for name in loaded.missing if name.startswith("decoder.")}
    assert {name.removeprefix("decoder.") for name in decoder} == set(before)
    assert loaded.missing["decoder.stages.0.convs.0.conv.weight"] == (
        "ambiguous: decoder.stages has 3 stages in the file and 4 here"
    )
    assert all(torch.equal(tensor, dict(new.decoder.named_parameters())[name]) for name, tensor in before.items())
    assert torch.equal(new.encoder.stages[3][0].convs[0].conv.weight, old.encoder.stages[3][0].convs[0].conv.weight)


def test_a_decoder_of_another_depth_stays_fresh_if_asked_for_and_does_not_count() -> None:
    old, new = unet((2, 4, 4, 4)), unet((2, 4, 4, 4, 4))
    loaded = load_weights(new, old.state_dict(), adapt="decoder", min_share=0.7)
    assert loaded.share_of_network > 0.7
    assert loaded.missing["decoder.stages.0.convs.0.conv.weight"] == (
        "left fresh as asked: decoder.stages has 3 stages in the file and 4 here"
    )


@pytest.mark.parametrize(
    ("adapt", "expected"),
    [
        ("channels", "'channels' is none of zero_channels, repeat_channels"),
        (["zero_channels", "average_channels"], "choose one of zero_channels"),
    ],
)
def test_unknown_and_contradicting_adaptations_are_errors(adapt: Any, expected: str) -> None:
    with pytest.raises(WeightsError, match=expected):
        load_weights(stem(3), stem(3).state_dict(), adapt=adapt)


def test_adaptations_work_in_half_precision_and_by_order() -> None:
    def network(channels: int, classes: int) -> nn.Module:
        widths = [channels, 4, 8, 16, 8, classes]
        return nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in pairwise(widths)))

    old, new = network(3, 2), network(1, 4)
    file = {f"layer{name}": tensor.half() for name, tensor in old.state_dict().items()}
    loaded = load_weights(new, file, adapt=["zero_channels", "classes"])
    assert not loaded.missing
    assert set(loaded.adapted) == {"0.weight", "4.weight", "4.bias"}
    assert loaded.matched["0.weight"] == "layer0.weight"
    torch.testing.assert_close(new[0].weight, old[0].weight.sum(1, keepdim=True), rtol=1e-2, atol=1e-3)

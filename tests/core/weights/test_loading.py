"""Pre-trained weights: pairs of networks and files as people have them, and files that are no weights."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.networks.nets import SegResNet, SwinUNETR, UNet, ViT, resnet10
from torch import Tensor, nn

from layertune import WeightsError, load_weights
from small_networks import SmallResNet, SmallTransformer, SmallUNet


def plain_conv_unet(classes: int = 3, features: tuple[int, ...] = (2, 4, 8)) -> PlainConvUNet:
    return PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=features,
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=(1, 2, 2),
        n_conv_per_stage=2,
        num_classes=classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nnU-Net": plain_conv_unet,
    "UNet": lambda: UNet(3, 1, 2, channels=(2, 4, 8), strides=(2, 2), num_res_units=1, norm="batch"),
    "SegResNet": lambda: SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
    "SwinUNETR": lambda: SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2),
}


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def renamed(weights: dict[str, Tensor], *changes: tuple[str, str]) -> dict[str, Tensor]:
    for old, new in changes:
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    return weights


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("prefix", ["", "backbone.model."])
def test_a_network_takes_its_own_weights_whole(kind: str, prefix: str) -> None:
    source, target = NETWORKS[kind](), NETWORKS[kind]()
    assert not equal(source, target)
    loaded = load_weights(target, {prefix + name: tensor for name, tensor in source.state_dict().items()})
    assert equal(source, target)
    assert not loaded.missing
    assert not loaded.unused
    assert not loaded.by_order
    assert loaded.prefix == (f"{prefix}* -> *" if prefix else "")
    assert set(dict(target.named_parameters())) <= set(loaded.matched)


def test_names_of_one_tensor_are_one() -> None:
    source, target = plain_conv_unet(), plain_conv_unet()
    assert "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight" in source.state_dict()
    own = {name: tensor.clone() for name, tensor in source.named_parameters()}
    loaded = load_weights(target, own)
    assert equal(source, target)
    assert set(loaded.matched) == set(own)
    # Only by its second name does the file know this one.
    del own["encoder.stages.0.0.convs.0.conv.weight"]
    own["decoder.encoder.stages.0.0.convs.0.conv.weight"] = torch.ones(2, 1, 3, 3, 3)
    load_weights(target, own)
    assert bool((target.encoder.stages[0][0].convs[0].conv.weight == 1).all())


def test_two_names_of_one_tensor_that_hold_different_values_are_refused() -> None:
    weights = plain_conv_unet().state_dict()
    first = "encoder.stages.0.0.convs.0.conv.weight"
    weights[first] = weights[first] + 1
    target = plain_conv_unet()
    before = target.state_dict()[first].clone()
    loaded = load_weights(target, weights)
    assert "differ, and are one tensor here" in loaded.missing[first]
    assert torch.equal(target.state_dict()[first], before)


def test_a_head_for_other_classes_stays_fresh_and_is_named() -> None:
    source, target = plain_conv_unet(classes=5), plain_conv_unet(classes=3)
    before = {name: tensor.clone() for name, tensor in target.decoder.seg_layers.named_parameters()}
    loaded = load_weights(target, source.state_dict())
    assert loaded.missing == loaded.unused
    assert set(loaded.missing) == {
        f"decoder.seg_layers.{level}.{name}" for level in (0, 1) for name in ("weight", "bias")
    }
    assert loaded.missing["decoder.seg_layers.1.bias"] == "shape (5,) against (3,)"
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.decoder.seg_layers.named_parameters())
    assert "left as they were: decoder.seg_layers.0.weight (shape (5, 4, 1, 1, 1) against" in loaded.summary()


def test_the_encoder_of_self_supervised_swin_goes_into_swin_unetr() -> None:
    source, target = NETWORKS["SwinUNETR"](), NETWORKS["SwinUNETR"]()
    encoder = {
        name.removeprefix("swinViT."): tensor for name, tensor in source.state_dict().items() if "swinViT" in name
    }
    file = renamed(encoder, ("mlp.linear1", "mlp.fc1"), ("mlp.linear2", "mlp.fc2"))
    file |= {"rotation_head.weight": torch.zeros(4, 192), "rotation_head.bias": torch.zeros(4)}
    loaded = load_weights(target, file)
    assert loaded.prefix == "* -> swinViT.*"
    assert equal(source.swinViT, target.swinViT)
    assert loaded.by_order
    assert all("mlp.linear" in name for name in loaded.by_order)
    assert set(loaded.unused) == {"rotation_head.weight", "rotation_head.bias"}
    assert loaded.missing["encoder1.layer.conv1.conv.weight"] == "not in the file"


def test_a_residual_encoder_with_another_classifier() -> None:
    source, target = (resnet10(spatial_dims=3, n_input_channels=1, num_classes=n, feed_forward=True) for n in (4, 2))
    weights = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    loaded = load_weights(target, weights)
    assert set(loaded.missing) == {"fc.weight", "fc.bias"}
    assert torch.equal(target.layer4[0].conv2.weight, source.layer4[0].conv2.weight)


class Genesis(nn.Module):
    """The names of Genesis_Chest_CT.pt, at another width."""

    def __init__(self, classes: int, names: tuple[str, str, str, str] = ("down_tr", "up_tr", "ops", "out_tr")) -> None:
        super().__init__()
        down, up, ops, out = names
        self.names = names
        widths = [(1, 4, 8), (8, 8, 16), (16, 16, 32)]
        for number, (a, b, c) in enumerate(widths):
            self.add_module(f"{down}{64 * 2**number}", self._double(ops, a, b, c))
        for number, (a, b) in reversed(list(enumerate([(32, 16), (16, 8)]))):
            block = self._double(ops, a + b, b, b)
            self.add_module(
                f"{up}{64 * 2**number}", nn.ModuleDict({"up_conv": nn.ConvTranspose3d(a, a, 2, 2), **block})
            )
        self.add_module(out, nn.ModuleDict({"final_conv": nn.Conv3d(8, classes, 1)}))

    @staticmethod
    def _double(ops: str, a: int, b: int, c: int) -> nn.ModuleDict:
        pair = [
            nn.ModuleDict({"conv1": nn.Conv3d(i, o, 3, padding=1), "bn1": nn.BatchNorm3d(o)})
            for i, o in ((a, b), (b, c))
        ]
        return nn.ModuleDict({ops: nn.ModuleList(pair)})


def test_another_naming_scheme_of_the_whole_architecture_is_told_by_order() -> None:
    source, target = Genesis(1), Genesis(3, names=("encoder", "decoder", "convolutions", "head"))
    nn.init.normal_(source.down_tr64["ops"][0]["bn1"].running_mean)
    loaded = load_weights(target, {f"module.{name}": tensor for name, tensor in source.state_dict().items()})
    for ours, theirs in loaded.matched.items():
        assert torch.equal(target.state_dict()[ours], source.state_dict()[theirs.removeprefix("module.")])
    assert loaded.matched["encoder64.convolutions.0.bn1.running_mean"] == "module.down_tr64.ops.0.bn1.running_mean"
    assert loaded.missing == {
        "head.final_conv.weight": "shape (1, 8, 1, 1, 1) against (3, 8, 1, 1, 1)",
        "head.final_conv.bias": "shape (1,) against (3,)",
    }
    assert set(loaded.by_order) == set(loaded.matched)


def test_the_encoder_of_another_naming_scheme_is_told_by_order() -> None:
    source, target = plain_conv_unet(), plain_conv_unet()
    encoder = {name: tensor for name, tensor in source.encoder.state_dict().items() if "all_modules" not in name}
    file = renamed(encoder, ("stages", "levels"), (".0.convs", ""), (".conv.", ".c."), (".norm.", ".n."))
    loaded = load_weights(target, file)
    assert equal(source.encoder, target.encoder)
    assert all(name.startswith("decoder.") for name in loaded.missing)
    assert not loaded.unused


class Attention(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        for name in names:
            self.add_module(name, nn.Linear(4, 4))


@pytest.mark.parametrize("names", [("keys", "queries"), ("k", "q"), ("proj2", "proj1")])
def test_modules_that_look_alike_are_not_paired_by_their_order(names: tuple[str, str]) -> None:
    target = Attention("query", "key")
    file = renamed(Attention(*names).state_dict(), ("first", "stem"))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match="leave a doubt which is which"):
        load_weights(target, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_a_file_that_fits_two_places_is_not_paired() -> None:
    def encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))

    target = nn.ModuleDict({"left": encoder(), "right": encoder()})
    file = renamed(encoder().state_dict(), ("0.", "a1."), ("1.", "a2."))
    with pytest.raises(WeightsError, match="leave a doubt"):
        load_weights(target, file)
    # Nor by a prefix: both fit.
    with pytest.raises(WeightsError, match="leave a doubt"):
        load_weights(target, encoder().state_dict())


@pytest.mark.parametrize("target", [SmallUNet, SmallTransformer, NETWORKS["SegResNet"]])
def test_weights_of_another_architecture_are_an_error(target: Callable[[], nn.Module]) -> None:
    with pytest.raises(WeightsError, match=r"belong to another architecture: the file names .*; the network names"):
        load_weights(target(), SmallResNet().state_dict())


def test_names_that_agree_with_shapes_that_do_not_are_an_error() -> None:
    with pytest.raises(WeightsError, match=r"no tensor .* fits .*shape \(4, .* against \(2,"):
        load_weights(plain_conv_unet(), plain_conv_unet(classes=4, features=(4, 6, 12)).state_dict())


def test_a_user_says_which_name_is_which() -> None:
    source, target = Attention("query", "key"), Attention("q", "k")
    names = {f"{word}.{kind}": f"{word[0]}.{kind}" for word in ("query", "key") for kind in ("weight", "bias")}
    loaded = load_weights(target, source.state_dict(), rename=names)
    assert not loaded.missing
    assert torch.equal(target.q.weight, source.query.weight)
    loaded = load_weights(
        target, source.state_dict(), rename=lambda name: None if name.startswith("key") else names.get(name)
    )
    assert set(loaded.matched) == {"q.weight", "q.bias"}
    with pytest.raises(WeightsError, match=r"first.weight and first.bias one name, x"):
        load_weights(target, source.state_dict(), rename=lambda _: "x")


def test_nothing_is_guessed_where_that_is_not_wanted() -> None:
    source, target = Genesis(1), Genesis(1)
    file = {f"net.{name}": tensor for name, tensor in source.state_dict().items()}
    with pytest.raises(WeightsError, match="another architecture"):
        load_weights(target, file, guess=False)
    assert load_weights(target, file).prefix == "net.* -> *"


def test_wrappers_and_half_precision() -> None:
    source, target = SmallResNet(), SmallResNet()
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in source.state_dict().items()
    }
    assert not load_weights(nn.DataParallel(target), half).missing
    assert target.fc.weight.dtype is torch.float32
    torch.testing.assert_close(target.fc.weight, source.fc.weight, rtol=1e-3, atol=1e-3)
    whole = {name: tensor.long() for name, tensor in source.state_dict().items()}
    loaded = load_weights(target, whole, allow_partial=True)
    assert loaded.missing["fc.weight"] == "torch.int64 against torch.float32"


def test_the_report_is_plain_data() -> None:
    loaded = load_weights(plain_conv_unet(), plain_conv_unet(classes=2).state_dict())
    found: dict[str, Any] = loaded.as_dict()
    assert set(found) == {
        "matched",
        "missing",
        "unused",
        "by_order",
        "prefix",
        "share_of_network",
        "share_of_file",
        "adapted",
    }
    assert found["matched"]["encoder.stages.0.0.convs.0.conv.bias"] == "encoder.stages.0.0.convs.0.conv.bias"


def test_a_transformer_of_another_order_within_blocks_is_never_off_by_one_block() -> None:
    """MONAI 1.3 lists mlp, norm1, attn, norm2; timm norm1, attn, norm2, mlp."""
    source = ViT(3, (32, 32), (16, 16), 192, 768, 12, 3, spatial_dims=2, classification=True)
    file = {name: tensor for name, tensor in source.state_dict().items() if "norm_cross_attn" not in name}
    target = timm.create_model("vit_tiny_patch16_224")
    loaded = load_weights(target, file)
    assert all(own.split(".")[1] == name.split(".")[1] for own, name in loaded.matched.items() if "blocks" in own)
    for block, theirs in zip(target.blocks, source.blocks, strict=True):
        assert torch.equal(block.mlp.fc1.weight, theirs.mlp.linear1.weight)
        assert torch.equal(block.attn.qkv.weight, theirs.attn.qkv.weight)
    reason = "ambiguous: it may be blocks.7.attn.out_proj.weight of the file"
    assert loaded.missing["blocks.7.attn.proj.weight"] == reason
    assert "ambiguous" in loaded.unused["blocks.7.attn.out_proj.weight"]


LITE = "tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({}, set()),
        ({"features_only": True}, set()),
        ({"in_chans": 1}, {"conv_stem.weight"}),
        ({"in_chans": 1, "features_only": True}, {"conv_stem.weight"}),
        ({"in_chans": 1, "num_classes": 3}, {"conv_stem.weight", "classifier.weight", "classifier.bias"}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "encoder.model."])
def test_the_stem_is_not_lost_by_order(arguments: dict[str, Any], left: set[str], prefix: str) -> None:
    """Names like those of ImageNet's EfficientNet-Lite0 file; the prefix is segmentation_models_pytorch's."""
    source = timm.create_model(LITE).state_dict()
    file = {re.sub(r"([a-z]\w*)\.", lambda word: f"_{word[1]}.", name): tensor for name, tensor in source.items()}
    assert not file.keys() & source.keys()
    target: nn.Module = timm.create_model(LITE, **arguments)
    if prefix:
        decoder = nn.Sequential(nn.Conv2d(320, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 2, 1))
        target = nn.ModuleDict({"encoder": nn.ModuleDict({"model": target}), "decoder": decoder})
    loaded = load_weights(target, file)
    left = {prefix + name for name in left}
    assert {name for name in loaded.missing if not name.startswith("decoder.")} == left
    assert all("shape (" in loaded.missing[name] for name in left)
    own = target.state_dict()
    assert all(torch.equal(own[name], source[name.removeprefix(prefix)]) for name in loaded.matched)


COPIES = {
    "student and teacher": ("student.", "teacher."),
    "weights and their average": ("state_dict.", "state_dict_ema."),
    "self-distillation": ("student.backbone.", "teacher.backbone."),
    "a plain copy and an average": ("", "ema_model.module."),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("names", [SmallResNet, None])
def test_of_several_copies_none_is_loaded_without_a_choice(kind: str, names: Any) -> None:
    """By their own names, and, as `None`, by names that only order and shapes tell."""
    copies = {prefix: SmallResNet() for prefix in COPIES[kind]}
    changes = () if names else (("stem", "first"), ("conv", "c"), ("bn", "n"), ("blocks", "levels"), ("fc", "last"))
    file = {
        prefix + name: tensor
        for prefix, copy in copies.items()
        for name, tensor in renamed(copy.state_dict(), *changes).items()
    }
    target = SmallResNet()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"hold 2 copies of the network that differ, at .*; choose one, as with prefix="
    ):
        load_weights(target, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    for prefix, copy in copies.items():
        if not prefix and not names:
            continue  # the order of names alone does not tell where a copy without a prefix ends
        loaded = load_weights(target, file, prefix=prefix.removesuffix("."))
        assert equal(target, copy)
        assert all(name.startswith(prefix) for name in loaded.matched.values())


def test_equal_copies_are_no_doubt() -> None:
    source, target = SmallResNet(), SmallResNet()
    file = {prefix + name: t.clone() for prefix in ("a.", "b.") for name, t in source.state_dict().items()}
    assert load_weights(target, file).prefix == "a.* -> *"
    assert equal(source, target)


def test_a_prefix_that_is_not_there_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"no name in the weights begins with 'teacher\.'; they begin with stem"):
        load_weights(SmallResNet(), SmallResNet().state_dict(), prefix="teacher")


def test_two_encoders_of_one_network_are_no_copies() -> None:
    def two() -> nn.Module:
        return nn.ModuleDict({"left": SmallResNet(), "right": SmallResNet()})

    source, target = two(), two()
    assert not load_weights(target, source.state_dict()).missing
    assert equal(source, target)

"""What Network Alchemy finds in the hosts' own networks."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from dynamic_network_architectures.architectures import unet
from monai.networks import nets
from torch import Tensor, nn

from layertune import GammaPenalty, ModelError, gammas, norm_only, redundant_kernels, reinitialize

VOLUME = (2, 1, 16, 16, 16)
AFFINE = ("instance", {"affine": True})


def nnunet(kind: str) -> nn.Module:
    common: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": 4,
        "features_per_stage": (2, 4, 8, 8),
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": (1, 2, 2, 2),
        "num_classes": 3,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    if kind == "plain":
        return unet.PlainConvUNet(**common, n_conv_per_stage=2, n_conv_per_stage_decoder=2)
    return unet.ResidualEncoderUNet(**common, n_blocks_per_stage=(1, 3, 4, 2), n_conv_per_stage_decoder=1)


def timm_model(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=3, **settings)


# Each network, the shape of its input, a pattern of its gammas' names, how many norms have one, how many of these scale
# kernels, and the operator that follows the first such norm.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, int, int, str | None]] = {
    # Four stages of two convolutions down, three up.
    "nnU-Net, plain": (lambda: nnunet("plain"), (2, 1, 32, 32, 32), r"convs\.\d\.norm", 14, 14, "leaky_relu"),
    # Ten blocks of two convolutions, three of them with a projection, the stem, three stages up.
    "nnU-Net, residual": (
        lambda: nnunet("residual"),
        (2, 1, 32, 32, 32),
        r"norm",
        26,
        26,
        "leaky_relu",
    ),
    "MONAI UNet, batch": (
        lambda: nets.UNet(3, 1, 2, (4, 8, 16), (2, 2), norm="batch"),
        VOLUME,
        r"adn\.N",
        4,
        4,
        "prelu",
    ),
    "MONAI UNet, affine instance": (
        lambda: nets.UNet(3, 1, 2, (4, 8, 16), (2, 2), norm=AFFINE),
        VOLUME,
        r"adn\.N",
        4,
        4,
        "prelu",
    ),
    "MONAI BasicUNet, group": (
        lambda: nets.BasicUNet(3, 1, 2, (4, 4, 8, 8, 16, 4), norm=("group", {"num_groups": 2})),
        VOLUME,
        r"adn\.N",
        18,
        18,
        "leaky_relu",
    ),
    "MONAI DynUNet": (
        lambda: nets.DynUNet(3, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4] * 4),
        VOLUME,
        r"norm[12]",
        14,
        14,
        "leaky_relu",
    ),
    "MONAI VNet": (lambda: nets.VNet(3, 1, 2), (2, 1, 32, 32, 32), r"adn\.N|bn1", 24, 24, "elu"),
    # Pre-activation blocks: the first norm of each reads the sum, the second the first convolution.
    "MONAI SegResNet": (lambda: nets.SegResNet(3, 8, 1, 2), VOLUME, r"norm[12]|conv_final\.0", 25, 12, "relu"),
    # Transformers: the norms read the residual stream. The convolution blocks' instance norms have no gamma ...
    "MONAI SwinUNETR": (
        lambda: nets.SwinUNETR(1, 2, feature_size=12),
        (2, 1, 64, 64, 64),
        r"norm[12]?",
        20,
        0,
        None,
    ),
    # ... unless they are asked for: then each of the 26 scales kernels.
    "MONAI SwinUNETR, affine instance": (
        lambda: nets.SwinUNETR(1, 2, feature_size=12, norm_name=AFFINE),
        (2, 1, 64, 64, 64),
        r"norm[123]?",
        46,
        26,
        "leaky_relu",
    ),
    "MONAI UNETR, batch": (
        lambda: nets.UNETR(1, 2, (32, 32, 32), 4, 24, 32, 2, norm_name="batch"),
        (2, 1, 32, 32, 32),
        r"norm\w*",
        58,
        21,
        "leaky_relu",
    ),
    "timm resnet18": (timm_model("resnet18"), (2, 3, 32, 32), r"bn[12]|downsample\.1", 20, 20, "relu"),
    "timm efficientnet_b0": (timm_model("efficientnet_b0"), (2, 3, 32, 32), r"bn[123]", 49, 49, "silu"),
    "timm convnext_atto": (timm_model("convnext_atto"), (2, 3, 64, 64), r"norm|\d", 17, 13, "linear"),
    "timm resnet50_gn": (timm_model("resnet50_gn"), (2, 3, 32, 32), r"norm\d|bn\d|downsample\.1", 53, 53, "relu"),
    "timm resnetv2_50": (timm_model("resnetv2_50"), (2, 3, 32, 32), r"norm\d?", 49, 32, "relu"),
    "timm poolformer_s12": (timm_model("poolformer_s12"), (2, 3, 64, 64), r"norm\d?", 25, 0, None),
    "timm vit": (timm_model("vit_tiny_patch16_224", img_size=32), (2, 3, 32, 32), r"norm\d?", 25, 0, None),
    "timm vit with RmsNorm": (timm_model("test_vit4", img_size=32), (2, 3, 32, 32), r"\w*norm\w*", 19, 0, None),
    "timm swin": (
        timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2),
        (2, 3, 64, 64),
        r"norm\d?",
        29,
        1,
        None,
    ),
}
QUICK = {
    "nnU-Net, plain",
    "MONAI UNet, batch",
    "MONAI DynUNet",
    "MONAI SegResNet",
    "timm resnet18",
    "timm convnext_atto",
    "timm vit",
}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


def plant(net: nn.Module, norms: list[str]) -> None:
    with torch.no_grad():
        for norm in norms:
            weight: Any = net.get_submodule(norm).weight
            weight.fill_(1)  # timm's ResNets start the last norm of each block at 0
            weight.view(-1)[1] = 0.001


@pytest.mark.parametrize("name", NAMES)
def test_gammas_are_those_of_a_walk_by_hand(name: str) -> None:
    make, _, pattern, count, _, _ = NETWORKS[name]
    net = make()
    named = dict(net.named_parameters())
    slopes = {f"{path}.weight" for path, module in net.named_modules() if isinstance(module, nn.PReLU)}
    vectors = {key for key, p in named.items() if p.ndim == 1 and key.endswith(".weight")} - slopes
    found = gammas(net)
    assert {f"{norm}.weight" for norm in found} == vectors
    assert len(found) == count
    assert all(re.search(rf"(^|\.)({pattern})$", norm) for norm in found), list(found)
    assert all(torch.equal(values, named[f"{norm}.weight"]) for norm, values in found.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_kernel_is_found_and_started_afresh(name: str) -> None:
    make, shape, _, count, pairs, follows = NETWORKS[name]
    net = make()
    example = torch.empty(shape)
    plant(net, list(gammas(net)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if not pairs else "error", message="no norm of .* scales the kernels")
        found = redundant_kernels(net, example, threshold=0.05)
    assert len(found.pairs) == pairs
    assert len(found.unpaired) == count - pairs
    assert found.channels == dict.fromkeys(found.pairs, (1,))
    if follows is not None:
        assert next(iter(found.pairs.values())).activation.operator == follows
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    reinitialize(net, found)
    touched = {f"{pair.operation}." for pair in found.pairs.values()} | {f"{norm}." for norm in found.pairs}
    for key, tensor in net.state_dict().items():
        owner = f"{key.rpartition('.')[0]}."
        same = tensor == before[key]
        # nnU-Net's blocks hold each module under two names.
        aliases = owner in touched or any(owner == prefix for prefix in _aliases(net, touched))
        assert aliases or bool(same.all()), f"{key} changed"
    assert all(gammas(net)[norm].flatten()[1] == 1 for norm in found.pairs)
    assert all(gammas(net)[norm].flatten()[1] == pytest.approx(0.001) for norm in found.unpaired)


def _aliases(net: nn.Module, prefixes: set[str]) -> set[str]:
    chosen = {id(net.get_submodule(prefix.removesuffix("."))) for prefix in prefixes}
    return {f"{name}." for name, module in net.named_modules(remove_duplicate=False) if id(module) in chosen}


@pytest.mark.parametrize("name", ["nnU-Net, plain", "MONAI UNet, batch", "timm resnet18", "timm vit"])
def test_norm_only_trains_the_norms_of_a_hosts_network(name: str) -> None:
    make, shape, *_ = NETWORKS[name]
    net = make()
    norms = {f"{norm}.{key}" for norm in gammas(net) for key in ("weight", "bias")}
    with norm_only(net):
        output = net(torch.randn(shape))
        outputs: list[Tensor] = output if isinstance(output, list) else [output]
        loss = sum(value.square().mean() for value in outputs)
        (loss + GammaPenalty(net)()).backward()
        assert {key for key, p in net.named_parameters() if p.grad is not None} == norms


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: nets.UNet(3, 1, 2, (4, 8), (2,)), "affine", id="MONAI's default instance norm"),
        pytest.param(lambda: nets.UNet(3, 1, 2, (4, 8), (2,), norm=None), "no normalisation", id="MONAI without norms"),
        pytest.param(timm_model("nf_resnet50"), "no normalisation layer", id="timm, normaliser-free"),
    ],
)
def test_networks_without_gammas_say_so(make: Callable[[], nn.Module], message: str) -> None:
    net = make()
    with pytest.raises(ModelError, match=message):
        gammas(net)
    with pytest.warns(UserWarning, match="GammaPenalty has no effect"):
        assert GammaPenalty(net)().item() == 0


def test_a_norm_that_scales_kernels_scales_them_in_a_forward() -> None:
    """In nnU-Net's own network: a gamma and a beta of 0 switch the channel off, whatever its kernel."""
    net = nnunet("plain").eval()
    pair = next(iter(redundant_kernels(net, torch.empty(2, 1, 32, 32, 32), quantile=0.5).pairs.values()))
    norm: Any = net.get_submodule(pair.norm)
    operation: Any = net.get_submodule(pair.operation)
    with torch.no_grad():
        norm.weight[1], norm.bias[1] = 0, 0
    x = torch.randn(1, 1, 32, 32, 32)
    before = net(x)
    with torch.no_grad():
        operation.weight[1] += 1
    assert all(torch.equal(a, b) for a, b in zip(before, net(x), strict=True))
    with torch.no_grad():
        operation.weight[0] *= -1
    assert not all(torch.equal(a, b) for a, b in zip(before, net(x), strict=True))

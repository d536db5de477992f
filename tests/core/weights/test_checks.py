"""Weights that match too little, or that hold NaN, are refused before anything is copied."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from monai.networks.nets import SegResNet, SwinUNETR
from torch import Tensor, nn
from torchvision.models import resnet18, swin_t

from layertune import WeightsError, load_weights
from small_networks import SmallResNet

TRIVIAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "a counter": (
        lambda: resnet18(num_classes=3),
        lambda: timm.create_model("tf_efficientnet_lite0", num_classes=3),
        r"only 1 of 122 tensors match, 0 % of .* What matches: bn1\.num_batches_tracked\. What does not: conv1\.weight",
    ),
    "a norm": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        swin_t,
        r"only 4 of 173 tensors match.*norm\.weight, norm\.bias, head\.fc\.weight",
    ),
    "all norms and no kernel": (
        lambda: nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 8, 3), nn.BatchNorm3d(8)),
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
        r"only 12 of 14 tensors match, 1\.62 % of the network's parameters",
    ),
}


@pytest.mark.parametrize("kind", TRIVIAL)
def test_trivial_matches_are_refused_and_loaded_if_they_are_meant(kind: str) -> None:
    make, other, expected = TRIVIAL[kind]
    target, weights = make(), other().state_dict()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match=expected) as error:
        load_weights(target, weights)
    assert "expected 50 % of either, and 5 % of the network's" in str(error.value)
    assert "allow_partial=True" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    loaded = load_weights(target, weights, allow_partial=True)
    assert loaded.matched
    assert all(torch.equal(target.state_dict()[own], weights[file]) for own, file in loaded.matched.items())


def test_an_encoder_alone_is_no_trivial_match_nor_is_a_whole_file_for_an_encoder() -> None:
    whole = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2)
    encoder = {name: tensor for name, tensor in whole.state_dict().items() if name.startswith("swinViT.")}
    loaded = load_weights(SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2), encoder)
    assert loaded.share_of_network < 0.5 < loaded.share_of_file == 1
    loaded = load_weights(whole.swinViT, SwinUNETR(1, 2, feature_size=12, depths=(1,) * 4, spatial_dims=2).state_dict())
    assert loaded.share_of_file < 0.5 < loaded.share_of_network == 1


def test_a_file_of_one_tensor_is_not_enough_although_it_is_used_whole() -> None:
    weights = {"fc.weight": torch.zeros(3, 2)}
    with pytest.raises(WeightsError, match=r"0 % of the network's parameters outside the head and 100 % of the file's"):
        load_weights(SmallResNet(), weights)


def test_the_head_does_not_count_unless_it_is_all() -> None:
    def classifier(classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, classes))

    assert load_weights(classifier(1000), classifier(10).state_dict()).share_of_network == 1
    assert load_weights(nn.Linear(2, 3), nn.Linear(2, 3).state_dict()).share_of_network == 1


def test_the_share_can_be_chosen() -> None:
    target = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 6, bias=False), nn.Linear(6, 2))
    weights = {"0.weight": torch.ones(4, 4), "1.weight": torch.ones(9, 4), "2.weight": torch.ones(2, 9)}
    with pytest.raises(WeightsError, match=r"40 % of the network's .* and 30\.8 % of the file's; expected 50 %"):
        load_weights(target, weights)
    assert load_weights(target, weights, min_share=0.4).share_of_network == pytest.approx(0.4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["blocks.0.conv1.weight", "blocks.0.bn1.running_var"])
def test_weights_that_are_not_finite_are_refused_and_named(value: float, name: str) -> None:
    target, weights = SmallResNet(), SmallResNet().state_dict()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    weights[name].view(-1)[1] = value
    with pytest.raises(WeightsError, match=rf"hold NaN or infinite values in {name} \(1 of \d+\): the training"):
        load_weights(target, weights, allow_partial=True)
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_weights_too_large_for_half_precision_are_refused() -> None:
    weights = nn.Linear(2, 2).state_dict()
    weights["weight"][0, 0] = 1e6
    with pytest.raises(WeightsError, match=r"infinite values in weight \(1 of 4\)"):
        load_weights(nn.Linear(2, 2).half(), weights)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


def test_an_infinite_mask_is_no_fault() -> None:
    assert not load_weights(Masked(), Masked().state_dict()).missing
    weights: dict[str, Tensor] = Masked().state_dict()
    weights["mask"] = torch.full((2, 2), -torch.inf)
    with pytest.raises(WeightsError, match=r"infinite values in mask \(3 of 4\)"):
        load_weights(Masked(), weights)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device; call to_empty"),
        (lambda: nn.LazyLinear(2), "weight has no shape yet; run a batch through the network first"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_networks_without_memory_are_refused(make: Callable[[], nn.Module], expected: str) -> None:
    with pytest.raises(WeightsError, match=expected):
        load_weights(make(), nn.Linear(2, 2).state_dict())


def test_tensors_that_cannot_be_copied_are_left_out_and_named() -> None:
    weights: dict[str, Any] = SegResNet(init_filters=8).state_dict()
    weights["convInit.conv.weight"] = weights["convInit.conv.weight"].to_sparse()
    name = next(name for name in weights if "down_layers" in name and weights[name].dim() > 1)
    weights[name] = weights[name].to("meta")
    loaded = load_weights(SegResNet(init_filters=8), weights)
    assert set(loaded.missing) == {"convInit.conv.weight", name}
    assert "sparse, quantized" in loaded.missing[name]


def test_conjugate_views_are_loaded_with_their_values() -> None:
    network = nn.ParameterDict({name: nn.Parameter(torch.zeros(2, dtype=torch.cfloat)) for name in "ab"})
    values = torch.tensor([1 + 2j, 3 - 1j])
    loaded = load_weights(network, {"a": values, "b": values.conj()})
    assert set(loaded.matched) == {"a", "b"}
    assert torch.equal(network["a"], values)
    assert torch.equal(network["b"], values.conj().resolve_conj())
    real = nn.ParameterDict({name: nn.Parameter(torch.zeros(2)) for name in "ab"})
    load_weights(real, {"a": values.imag, "b": values.conj().imag})
    assert real["b"].tolist() == [-2, 1]


def test_tensors_of_inference_mode_are_loaded_and_written() -> None:
    with torch.inference_mode():
        source, target = SmallResNet(), SmallResNet()
    plain = SmallResNet()
    for network in (plain, target):
        load_weights(network, source.state_dict())
        assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert all(not parameter.is_inference() for parameter in plain.parameters())

"""Pre-trained weights in the layouts that are published for medical images; the files are made by the tests."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR, UNet, resnet10
from torch import Tensor, nn

from layertune.errors import ModelError, WeightsError
from layertune_monai import GenesisUNet, load_pretrained, param_groups
from layertune_monai.weights import check_frozen_layers


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def random_weights(network: nn.Module) -> dict[str, Tensor]:
    """A state dict with other values than any untrained network has."""
    return {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in network.state_dict().items()
    }


def assert_loaded(network: nn.Module, expected: dict[str, Tensor]) -> None:
    own = network.state_dict()
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(own[name], tensor), name


def unet(out_channels: int) -> UNet:
    return UNet(3, 1, out_channels, channels=(4, 8, 8), strides=(2, 2), norm="batch")


def test_no_file_leaves_the_network_alone() -> None:
    network = unet(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert load_pretrained(network, None) is None
    assert_loaded(network, before)


@pytest.mark.parametrize("holder", [None, "model", "state_dict", "network"])
def test_the_model_zoo(tmp_path: Path, holder: str | None, caplog: pytest.LogCaptureFixture) -> None:
    weights = random_weights(unet(2))
    file = save(tmp_path / "model.pt", weights if holder is None else {holder: weights, "epoch": 3})
    network = unet(2)
    with caplog.at_level("INFO"):
        loaded = load_pretrained(network, file)
    assert_loaded(network, weights)
    assert not loaded.missing
    assert not loaded.unused
    assert f"{file}: {len(weights)} of {len(weights)} tensors loaded" in caplog.text
    assert "head" not in caplog.text


def test_a_head_for_other_classes_stays_fresh_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = random_weights(unet(5))
    network = unet(2)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("model.2.")}
    loaded = load_pretrained(network, save(tmp_path / "model.pt", weights))
    assert_loaded(network, fresh)
    assert_loaded(network, {name: tensor for name, tensor in weights.items() if not name.startswith("model.2.")})
    assert loaded.missing["model.2.conv.bias"] == "shape (5,) against (2,)"
    assert "The head keeps its fresh initialisation: model.2.conv.bias, shape (5,) against (2,)." in caplog.text


def test_medicalnet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`resnet_10.pth`: the backbone of a DataParallel network under `state_dict`, without a classifier."""
    make = {"spatial_dims": 3, "n_input_channels": 1, "shortcut_type": "B", "bias_downsample": False}
    weights = random_weights(resnet10(**make, feed_forward=False))
    file = save(tmp_path / "resnet_10.pth", {"state_dict": {f"module.{name}": t for name, t in weights.items()}})
    network = resnet10(**make, num_classes=4)
    loaded = load_pretrained(network, file)
    assert_loaded(network, weights)
    assert loaded.missing == {"fc.weight": "not in the file", "fc.bias": "not in the file"}
    assert "The head keeps its fresh initialisation: fc.bias, not in the file." in caplog.text


def genesis_names() -> list[str]:
    """Of `Genesis_Chest_CT.pt`, by its own rule (Zhou et al. 2019)."""
    blocks = [
        f"{side}_tr{width}"
        for side, widths in (("down", (64, 128, 256, 512)), ("up", (256, 128, 64)))
        for width in widths
    ]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = []
    for block in blocks:
        if block.startswith("up"):
            names += [f"{block}.up_conv.weight", f"{block}.up_conv.bias"]
        for number in (0, 1):
            names += [f"{block}.ops.{number}.conv1.{part}" for part in ("weight", "bias")]
            names += [f"{block}.ops.{number}.bn1.{part}" for part in norm]
    return [*names, "out_tr.final_conv.weight", "out_tr.final_conv.bias"]


def test_models_genesis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = GenesisUNet(out_channels=3)
    assert list(network.state_dict()) == genesis_names()
    shapes = {
        "down_tr64.ops.0.conv1.weight": (32, 1, 3, 3, 3),
        "down_tr64.ops.1.conv1.weight": (64, 32, 3, 3, 3),
        "down_tr512.ops.1.conv1.weight": (512, 256, 3, 3, 3),
        "up_tr256.up_conv.weight": (512, 512, 2, 2, 2),
        "up_tr256.ops.0.conv1.weight": (256, 768, 3, 3, 3),
        "up_tr128.ops.0.conv1.weight": (128, 384, 3, 3, 3),
        "up_tr64.ops.0.conv1.weight": (64, 192, 3, 3, 3),
        "out_tr.final_conv.weight": (3, 64, 1, 1, 1),
    }
    assert {name: tuple(network.state_dict()[name].shape) for name in shapes} == shapes
    weights = random_weights(GenesisUNet(out_channels=1))
    file = save(
        tmp_path / "Genesis_Chest_CT.pt",
        {"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}},
    )
    loaded = load_pretrained(network, file)
    assert_loaded(network, {name: tensor for name, tensor in weights.items() if not name.startswith("out_tr.")})
    assert set(loaded.missing) == {"out_tr.final_conv.weight", "out_tr.final_conv.bias"}
    assert "The head keeps its fresh initialisation" in caplog.text


def test_genesis_norms_take_the_batch_in_inference_too() -> None:
    network = GenesisUNet(out_channels=2).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        given = network(image)
        assert_loaded(network, before)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean += 3  # which a network that used them would notice
        assert torch.equal(network(image), given)
        network.train()
        assert torch.allclose(network(image), given)
    assert not torch.equal(
        network.state_dict()["down_tr64.ops.0.bn1.running_var"], before["down_tr64.ops.0.bn1.running_var"]
    )


def swin(out_channels: int = 3) -> SwinUNETR:
    return SwinUNETR(in_channels=1, out_channels=out_channels, feature_size=12)


def test_swin_by_contrastive_pretraining_as_monai_itself_loads_it(tmp_path: Path) -> None:
    """`model_swinvit.pt`: compared with `SwinUNETR.load_from`, which reports nothing and needs every name."""
    source = {
        name: t
        for name, t in random_weights(swin()).items()
        if name.startswith("swinViT.layers1.") or "patch_embed" in name
    }
    source |= {
        name: t
        for name, t in random_weights(swin()).items()
        if name.startswith(tuple(f"swinViT.layers{n}." for n in (2, 3, 4)))
    }
    theirs = {
        "module." + name.removeprefix("swinViT.").replace("linear1", "fc1").replace("linear2", "fc2"): tensor
        for name, tensor in source.items()
    }
    heads = {"module.rotation_head.weight": torch.rand(4, 96), "module.contrastive_head.weight": torch.rand(8, 96)}
    file = save(tmp_path / "model_swinvit.pt", {"state_dict": theirs | heads})
    ours, monai = swin(), swin()
    monai.load_state_dict(ours.state_dict())
    loaded = load_pretrained(ours, file)
    monai.load_from({"state_dict": theirs})
    assert_loaded(ours, monai.state_dict())
    assert_loaded(ours, source)
    assert set(loaded.matched) == set(source)
    assert set(loaded.unused) == {"rotation_head.weight", "contrastive_head.weight"}
    assert "out.conv.conv.weight" in loaded.missing


def test_swin_by_a_disruptive_autoencoder(tmp_path: Path) -> None:
    """`ssl_pretrained_weights.pth`, whose stages hold one more list, as MONAI's `filter_swinunetr` reads it."""
    source = {name: tensor for name, tensor in random_weights(swin()).items() if name.startswith("swinViT.")}
    theirs = {}
    for name, tensor in source.items():
        stage, _, rest = name.removeprefix("swinViT.").partition(".0.")
        theirs[f"encoder.{stage}.0.0.{rest}" if rest else f"encoder.{stage}"] = tensor
    theirs |= {"encoder.norm.weight": torch.rand(192), "out.conv.conv.weight": torch.rand(1, 12, 1, 1, 1)}
    network = swin()
    loaded = load_pretrained(network, save(tmp_path / "ssl_pretrained_weights.pth", {"model": theirs}))
    assert_loaded(network, source)
    assert set(loaded.unused) == {"encoder.norm.weight", "out.conv.conv.weight"}


def test_swin_of_the_model_zoo_needs_no_renaming(tmp_path: Path) -> None:
    weights = random_weights(swin())
    network = swin()
    assert not load_pretrained(network, save(tmp_path / "model.pt", weights)).missing
    assert_loaded(network, weights)


def test_a_layer_that_stays_random_must_not_be_frozen(tmp_path: Path) -> None:
    """With residual units two layers depend on the number of classes, and the head is but one of them."""

    def residual(classes: int) -> UNet:
        return UNet(3, 1, classes, channels=(4, 8), strides=(2,), num_res_units=1, norm="batch")

    file = save(tmp_path / "model.pt", random_weights(residual(5)))
    for policy, fits in (("last", False), ("layer_wise", True), ("all", True)):
        network = residual(2)
        loaded = load_pretrained(network, file)
        groups = param_groups(network, lr=0.1, input_shape=[2, 1, 8, 8, 8], policy=policy)
        if fits:
            assert check_frozen_layers(network, loaded, groups) is network
        else:
            with pytest.raises(ModelError, match=r"give nothing for model\.2\.0\.conv\.weight, .* would stay random"):
                check_frozen_layers(network, loaded, groups)
        assert check_frozen_layers(network, None, groups) is network, (
            "without a file all layers are fresh, as asked for"
        )


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not there"):
        load_pretrained(unet(2), tmp_path / "nowhere.pt")
    other = save(tmp_path / "other.pt", nn.LSTM(7, 5).state_dict())
    with pytest.raises(WeightsError, match="another architecture"):
        load_pretrained(unet(2), other)


def test_a_file_that_hardly_matches_is_refused_and_not_only_logged(tmp_path: Path) -> None:
    """Of two U-Nets of other widths nothing but the activations' slopes and the counters of the norms fits."""
    network, file = unet(2), save(tmp_path / "model.pt", UNet(3, 1, 2, (8, 16, 16), (2, 2), norm="batch").state_dict())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"only \d+ of \d+ tensors match, 0\.\d+ % of the network's parameters"):
        load_pretrained(network, file)
    assert_loaded(network, before)
    assert load_pretrained(network, file, allow_partial=True).matched


def test_one_of_several_copies_is_chosen(tmp_path: Path) -> None:
    copies = {"student": random_weights(swin()), "teacher": random_weights(swin())}
    file = save(tmp_path / "model.pt", copies)
    with pytest.raises(WeightsError, match="2 copies of the network that differ, at 'student', 'teacher'"):
        load_pretrained(swin(), file)
    network = swin()
    load_pretrained(network, file, prefix="teacher")
    assert_loaded(network, copies["teacher"])


def test_more_channels_are_adapted_if_asked_for(tmp_path: Path) -> None:
    """The first convolution and SwinUNETR's first skip both read the image."""
    weights = random_weights(swin())
    network = SwinUNETR(in_channels=4, out_channels=3, feature_size=12)
    loaded = load_pretrained(network, save(tmp_path / "model.pt", weights), adapt="average_channels")
    assert not loaded.missing
    names = ("swinViT.patch_embed.proj", "encoder1.layer.conv1.conv", "encoder1.layer.conv3.conv")
    assert set(loaded.adapted) == {f"{name}.weight" for name in names}
    own = network.state_dict()
    for name in loaded.adapted:
        assert torch.equal(own[name][:, :1], weights[name])

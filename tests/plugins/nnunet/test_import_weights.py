"""Weights of any origin become a file for -pretrained_weights, which nnU-Net's own function loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from layertune import WeightsError, read_weights
from layertune.cli import app as cli
from layertune_nnunet.errors import PlansError
from layertune_nnunet.tools.import_weights import ImportedWeights, import_weights, renaming
from layertune_nnunet.tools.planned_network import find_plan, planned_network
from nnunet_runs import DATASET, LABELS, dataset_json, plans


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a data set that nnU-Net has planned."""
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(LABELS)))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return folder


def network(planned: Path, seed: int, setting: str = "3d_fullres") -> nn.Module:
    return planned_network(planned / "nnUNetPlans.json", planned / "dataset.json", setting, seed=seed).network


def imported(planned: Path, weights: dict[str, Tensor], **options: Any) -> ImportedWeights:
    torch.save({"state_dict": weights}, planned / "foreign.pt")
    files = {"plans": planned / "nnUNetPlans.json", "dataset_json": planned / "dataset.json"}
    return import_weights(planned / "foreign.pt", planned / "w.pth", configuration="3d_fullres", **files, **options)


def without_aliases(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_parameters())


def as_nnunet_loads(planned: Path, file: Path) -> dict[str, Tensor]:
    """Load a file with nnU-Net's own function into a network of another seed, and return its parameters."""
    net = network(planned, seed=99)
    load_pretrained_weights(net, str(file))
    return without_aliases(net)


def test_nnunet_starts_from_weights_that_had_other_names(planned: Path) -> None:
    source = network(planned, seed=1)
    weights = {f"module.net.{name}": tensor for name, tensor in without_aliases(source).items()}
    done = imported(planned, weights)
    assert not done.loaded.missing
    assert not done.fresh
    loaded, fresh = as_nnunet_loads(planned, done.out), without_aliases(network(planned, seed=99))
    for name, tensor in without_aliases(source).items():
        assert torch.equal(loaded[name], fresh[name] if "seg_layers" in name else tensor), name


def test_an_encoder_alone_is_filled_up_with_seeded_initial_weights(planned: Path) -> None:
    source = network(planned, seed=1)
    encoder = {name: tensor for name, tensor in without_aliases(source).items() if name.startswith("encoder.")}
    done = imported(planned, encoder, seed=7)
    loaded, initial = as_nnunet_loads(planned, done.out), without_aliases(network(planned, seed=7))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in encoder.items())
    decoder = {name for name in loaded if name.startswith("decoder.") and "seg_layers" not in name}
    assert set(done.fresh) == decoder
    assert all(torch.equal(loaded[name], initial[name]) for name in decoder)
    again = imported(planned, encoder, seed=7)
    assert all(torch.equal(tensor, read_weights(again.out)[name]) for name, tensor in loaded.items() if name in decoder)


def test_tensors_of_another_shape_start_fresh_and_are_named(planned: Path) -> None:
    weights = without_aliases(network(planned, seed=1))
    weights["encoder.stages.0.0.convs.0.conv.weight"] = torch.zeros(4, 3, 3, 3, 3)
    weights["decoder.seg_layers.0.weight"] = torch.zeros(9, 8, 1, 1, 1)
    done = imported(planned, weights)
    assert done.fresh == {"encoder.stages.0.0.convs.0.conv.weight": "shape (4, 3, 3, 3, 3) against (4, 1, 3, 3, 3)"}
    assert set(done.loaded.missing) == {*done.fresh, "decoder.seg_layers.0.weight"}
    as_nnunet_loads(planned, done.out)


def test_building_a_network_keeps_the_random_state(planned: Path) -> None:
    state = torch.get_rng_state()
    one, other, third = (network(planned, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_a_user_renames_tensors(planned: Path) -> None:
    weights = {
        name.replace("encoder.", "down."): tensor for name, tensor in without_aliases(network(planned, 1)).items()
    }
    done = imported(planned, weights, rename=renaming(["down.stages=encoder.stages"]))
    assert not done.fresh
    assert renaming([]) is None
    with pytest.raises(WeightsError, match="written OLD=NEW"):
        renaming(["down"])


def test_models_genesis_convolutions_are_imported_by_renaming(planned: Path) -> None:
    """The published file's names and shapes, made here; nnU-Net plans these widths."""
    plan = plans()
    kinds = plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kinds |= {"features_per_stage": [32, 64, 128], "n_conv_per_stage": [2, 2, 2]}
    (planned / "nnUNetPlans.json").write_text(json.dumps(plan))
    shapes = {"down_tr64.ops.0": (32, 1), "down_tr64.ops.1": (64, 32), "down_tr128.ops.0": (64, 64)}
    shapes |= {"down_tr128.ops.1": (128, 64), "down_tr256.ops.0": (128, 128), "down_tr256.ops.1": (256, 128)}
    weights = {f"module.{name}.conv1.weight": torch.rand(*shape, 3, 3, 3) for name, shape in shapes.items()}
    with pytest.raises(WeightsError, match=r"belong to another architecture.*--rename where a command has it"):
        imported(planned, weights)
    places = {"64.ops.0": "0.0.convs.0", "64.ops.1": "1.0.convs.0", "128.ops.0": "1.0.convs.1"}
    places |= {"128.ops.1": "2.0.convs.0", "256.ops.0": "2.0.convs.1"}
    said = [f"down_tr{theirs}.conv1=encoder.stages.{own}.conv" for theirs, own in places.items()]
    done = imported(planned, weights, rename=renaming(said))
    assert len(done.loaded.matched) == 5
    assert done.loaded.unused == {"down_tr256.ops.1.conv1.weight": "not in the network"}
    loaded = as_nnunet_loads(planned, done.out)
    for theirs, own in places.items():
        assert torch.equal(loaded[f"encoder.stages.{own}.conv.weight"], weights[f"module.down_tr{theirs}.conv1.weight"])


@pytest.mark.parametrize(
    ("weights", "options", "expected"),
    [
        (lambda _: {"a.weight": torch.zeros(3, 3), "b.weight": torch.zeros(2, 3)}, {}, "belong to another"),
        (lambda net: {name: t for name, t in net.items() if "seg_layers" in name}, {}, "only 4 of 28 tensors match"),
        (
            lambda net: {name: t for name, t in net.items() if "seg_layers" in name},
            {"allow_partial": True},
            "only segmentation layers fit",
        ),
    ],
)
def test_weights_that_do_not_fit_write_nothing(
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]], options: dict[str, Any], expected: str, planned: Path
) -> None:
    with pytest.raises(WeightsError, match=expected):
        imported(planned, weights(without_aliases(network(planned, seed=1))), **options)
    assert not (planned / "w.pth").exists()


def test_other_channels_and_kernels_are_adapted_if_asked_for(planned: Path) -> None:
    """A file of four channels with a flat kernel in its first layer, as another data set's plan has it."""
    first = "encoder.stages.0.0.convs.0.conv.weight"
    weights = without_aliases(network(planned, seed=1))
    weights[first] = torch.randn(weights[first].shape[0], 4, 1, 3, 3)
    assert "shape" in imported(planned, weights).fresh[first]
    done = imported(planned, weights, adapt=["kernel_size", "zero_channels"])
    assert done.loaded.adapted == {first: "kernel 1x3x3 -> 3x3x3, input channels 4 -> 1 (their sum)"}
    assert not done.fresh
    loaded = as_nnunet_loads(planned, done.out)
    torch.testing.assert_close(loaded[first].sum(2, keepdim=True), weights[first].sum(1, keepdim=True))
    files = str(planned / "foreign.pt"), str(planned / "v.pth")
    adapt = "--adapt", "kernel_size", "--adapt", "zero_channels"
    found = json.loads(run(*files, "-d", "1", "-c", "3d_fullres", *adapt, "--json").stdout)
    assert list(found["adapted"]) == [first]
    result = run(*files, "-d", "1", "-c", "3d_fullres", "--adapt", "channels")
    assert result.exit_code == 2
    assert "'channels' is none of zero_channels" in result.stderr


def test_a_file_that_cannot_be_written_is_named(planned: Path) -> None:
    torch.save(without_aliases(network(planned, seed=1)), planned / "foreign.pt")
    files = {"plans": planned / "nnUNetPlans.json", "dataset_json": planned / "dataset.json"}
    with pytest.raises(WeightsError, match=r"nowhere/w\.pth cannot be written"):
        import_weights(planned / "foreign.pt", planned / "nowhere" / "w.pth", configuration="3d_fullres", **files)


def test_a_user_chooses_a_copy_and_means_a_partial_match(planned: Path) -> None:
    copies = [without_aliases(network(planned, seed)) for seed in (1, 2)]
    both = {f"{key}.{name}": t for key, copy in zip("ab", copies, strict=True) for name, t in copy.items()}
    with pytest.raises(WeightsError, match=r"2 copies of the network.*--prefix where a command has it"):
        imported(planned, both)
    loaded = as_nnunet_loads(planned, imported(planned, both, prefix="b").out)
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(loaded[first], copies[1][first])
    with pytest.raises(WeightsError, match=r"only 1 of 28 .*--allow-partial where a command has it"):
        imported(planned, {first: copies[0][first]})
    assert list(imported(planned, {first: copies[0][first]}, allow_partial=True).loaded.matched) == [first]


def test_a_planned_data_set_is_found_by_number_and_name(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_plan("1", "nnUNetPlans") == find_plan(DATASET, "nnUNetPlans")
    assert find_plan("001", "Other")[0] == planned / "Other.json"
    with pytest.raises(PlansError, match=r"one data set Dataset004_\* in .*found none"):
        find_plan("4", "nnUNetPlans")
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(PlansError, match="nnUNet_preprocessed is not set"):
        find_plan("1", "nnUNetPlans")


def test_plans_that_cannot_be_used_are_refused(planned: Path) -> None:
    description = planned / "dataset.json"
    with pytest.raises(PlansError, match="no configuration '3d_huge'; it has 2d, 3d_fullres"):
        planned_network(planned / "nnUNetPlans.json", description, "3d_huge")
    with pytest.raises(PlansError, match="it has none, so it is not a plan"):
        planned_network(description, description, "2d")
    with pytest.raises(PlansError, match="cannot be read"):
        planned_network(planned / "nowhere.json", description, "2d")
    (planned / "list.json").write_text("[]")
    with pytest.raises(PlansError, match="holds no JSON object"):
        planned_network(planned / "list.json", description, "2d")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["nnunet", "import", *arguments])


def test_the_command_lists_what_matched_and_what_did_not(planned: Path) -> None:
    source = without_aliases(network(planned, seed=1))
    torch.save(
        {name: t for name, t in source.items() if name.startswith("encoder")} | {"extra.weight": torch.zeros(1)},
        planned / "foreign.pt",
    )
    files = str(planned / "foreign.pt"), str(planned / "w.pth")
    found = json.loads(run(*files, "-d", "1", "-c", "3d_fullres", "--json").stdout)
    assert found["matched"]["encoder.stages.0.0.convs.0.conv.weight"] == "encoder.stages.0.0.convs.0.conv.weight"
    assert found["unused"] == {"extra.weight": "not in the network"}
    assert set(found["fresh"]) < set(found["missing"])
    assert "network_weights" in torch.load(planned / "w.pth", weights_only=True)
    text = run(*files, "--plans", str(planned / "nnUNetPlans.json"), "-c", "3d_fullres", "--seed", "5").stdout
    assert "tensors loaded" in text
    assert "are initial weights (seed 5)" in text
    assert "fresh segmentation layers" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-c", "2d"], "give either --dataset or --plans"),
        (["-c", "2d", "-d", "1", "--plans", "x.json"], "give either --dataset or --plans"),
        (["-c", "2d", "-d", "7"], "found none"),
        (["-c", "4d", "-d", "1"], "no configuration '4d'"),
        (["-c", "2d", "-d", "1", "--rename", "x"], "OLD=NEW"),
        (["-c", "2d", "-d", "1"], "nowhere.pt is not there"),
    ],
)
def test_a_mistake_gives_exit_code_2(arguments: list[str], expected: str, planned: Path) -> None:
    result = run("nowhere.pt" if "4d" not in arguments else _some_weights(planned), "out.pth", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def _some_weights(planned: Path) -> str:
    torch.save({"a.weight": torch.zeros(1)}, planned / "some.pt")
    return str(planned / "some.pt")

"""LRProfile: files bit for bit, bad files in one line, the numbers of the U, and replay step for step."""

import dataclasses
import json
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors_bytes
from torch import nn

from layertune import LRProfile, MetaLR, ProfileError, map_layers, meta_pass, param_groups
from layertune.rates.profile import ProfileSummary

SUFFIXES = [".json", ".safetensors"]


def profile_of(lrs: list[list[float]], *, depths: list[int] | None = None, steps: list[int] | None = None) -> LRProfile:
    layers = [f"layer{index}" for index in range(len(lrs[0]))]
    steps = steps or list(range(1, len(lrs) + 1))
    return LRProfile(layers, depths or list(range(1, len(layers) + 1)), steps, [[1.0] * len(layers)] * len(lrs), lrs)


@pytest.fixture
def profile() -> LRProfile:
    return LRProfile(
        ("stem", "block", "head"), (1, 2, 3), (1, 3), [[2.0, 0.5, 3.0], [4.0, 0.25, 9.0]], [[0.2, 0.05, 0.3]] * 2
    )


# Files


@st.composite
def profiles(draw: st.DrawFn) -> LRProfile:
    rate = st.floats(min_value=0, allow_nan=False, allow_infinity=False, allow_subnormal=True)
    layers = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True))
    steps = sorted(draw(st.sets(st.integers(1, 2**63 - 1), max_size=5)))
    depths = draw(st.lists(st.integers(1, 2**63 - 1), min_size=len(layers), max_size=len(layers)))
    rows = st.lists(
        st.lists(rate, min_size=len(layers), max_size=len(layers)), min_size=len(steps), max_size=len(steps)
    )
    return LRProfile(layers, depths, steps, draw(rows), draw(rows))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=profiles())
def test_files_give_back_every_bit(tmp_path: Path, suffix: str, saved: LRProfile) -> None:
    path = tmp_path / f"profile{suffix}"
    saved.save(path)
    loaded = LRProfile.load(path)
    assert repr(loaded) == repr(saved)  # repr tells floats apart to the last bit, and 0.0 from -0.0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, profile: LRProfile, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"profile{suffix}"
    profile.save(path)

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        dataclasses.replace(profile, steps=(5, 6)).save(path)
    assert LRProfile.load(path) == profile
    assert list(tmp_path.iterdir()) == [path]


def refused(path: Path) -> str:
    """The one line that load answers with: it names the file."""
    with pytest.raises(ProfileError) as caught:
        LRProfile.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncated_file_is_refused(tmp_path: Path, profile: LRProfile, suffix: str) -> None:
    path = tmp_path / f"profile{suffix}"
    profile.save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "cannot load the profile" in refused(path)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickle_is_refused_and_not_run(
    tmp_path: Path, profile: LRProfile, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"profile{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path)
    torch.save({"profile": profile}, path)
    refused(path)
    assert not Path("exploded").exists()


GOOD = {
    "format": "layertune.lr_profile",
    "version": 1,
    "layers": ["stem", "head"],
    "depths": [1, 2],
    "steps": [1, 2],
    "scales": [[1, 2], [3, 4]],
    "lrs": [[1, 2], [3, 4]],
}


def test_the_good_document_of_the_next_test_is_good(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(GOOD))
    assert LRProfile.load(path).scales == ((1.0, 2.0), (3.0, 4.0))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": "monai"}, "another program"),
        ({"format": None}, "another program"),
        ({"version": 2}, "update layertune"),
        ({"version": True}, "update layertune"),
        ({"version": "1"}, "update layertune"),
        ({"extra": 1}, r"unknown \['extra'\]"),
        ({"layers": []}, "at least one"),
        ({"layers": "ab"}, "must be a list, not str"),
        ({"layers": ["stem", 3]}, "must be names"),
        ({"layers": ["stem", ""]}, "must be names"),
        ({"layers": ["stem", "stem"]}, "doubled"),
        ({"depths": [1]}, "one depth a layer"),
        ({"depths": [0, 1]}, "from 1"),
        ({"depths": [1.5, 2]}, "whole numbers"),
        ({"depths": [True, 2]}, "whole numbers"),
        ({"steps": [2, 1]}, "ascend"),
        ({"steps": [1, 1]}, "ascend"),
        ({"steps": [1, 2**63]}, "from 1 to 9223372036854775807"),
        ({"steps": [1, 10**400]}, "from 1 to 9223372036854775807"),
        ({"steps": [1]}, "1 x 2"),
        ({"steps": {"a": 1}}, "must be a list, not dict"),
        ({"scales": [[1, 2], [3]]}, "2 x 2"),
        ({"scales": [1, 2]}, "must be a list, not int"),
        ({"lrs": [[1, 2], [3, -4]]}, "at least 0"),
        ({"lrs": [[1, 2], [3, None]]}, "finite numbers"),
        ({"lrs": [[1, 2], [3, "4"]]}, "finite numbers"),
        ({"lrs": [[1, 2], [3, True]]}, "finite numbers"),
        ({"lrs": [[1, 2], [3, 10**400]]}, "finite numbers"),
        ({"lrs": None}, "must be a list, not NoneType"),
    ],
)
def test_json_with_wrong_content_is_refused(tmp_path: Path, change: dict[str, object], fault: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ProfileError, match=fault):
        LRProfile.load(path)
    refused(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "null",
        "[" * 100_000,
        json.dumps(GOOD).replace("4]]", "NaN]]"),
        json.dumps(GOOD).replace("4]]", "-Infinity]]"),
        json.dumps(GOOD).replace("4]]", "1e999]]"),
        json.dumps(GOOD).replace("4]]", "9" * 5000 + "]]"),
        json.dumps({key: value for key, value in GOOD.items() if key != "lrs"}),
    ],
    ids=["empty", "list", "null", "deep", "nan", "minus-infinity", "1e999", "5000-digits", "no-lrs"],
)
def test_json_that_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    refused(path)


def arrays(**change: np.ndarray) -> dict[str, np.ndarray]:
    rates = np.array([[1.0, 2.0], [3.0, 4.0]])
    return {"depths": np.array([1, 2]), "steps": np.array([1, 2]), "scales": rates, "lrs": rates} | change


METADATA = {"format": "layertune.lr_profile", "version": "1", "layers": '["stem", "head"]'}


def test_the_good_arrays_of_the_next_test_are_good(tmp_path: Path) -> None:
    path = tmp_path / "profile.safetensors"
    path.write_bytes(safetensors_bytes(arrays(), METADATA))
    assert LRProfile.load(path).layers == ("stem", "head")


@pytest.mark.parametrize(
    ("content", "metadata", "fault"),
    [
        (arrays(), None, "another program"),
        (arrays(), METADATA | {"version": "2"}, "update layertune"),
        (arrays(), METADATA | {"version": "9" * 4000}, "update layertune"),
        (arrays(), METADATA | {"version": "9" * 5000}, "update layertune"),
        (arrays(), METADATA | {"version": "¹"}, "update layertune"),
        (arrays(), METADATA | {"layers": "[1"}, "names of the layers"),
        (arrays(), METADATA | {"layers": "[" * 100_000}, "names of the layers"),
        (arrays(), METADATA | {"layers": '{"stem": 1}'}, "must be a list"),
        (arrays(), {key: value for key, value in METADATA.items() if key != "layers"}, r"missing \['layers'\]"),
        (arrays(weight=np.ones(2)), METADATA, r"unknown \['weight'\]"),
        (arrays(lrs=np.ones((2, 2), np.float32)), METADATA, "type float64, not float32"),
        (arrays(steps=np.ones(2)), METADATA, "type int64, not float64"),
        (arrays(lrs=np.array([[1.0, np.nan], [1, 1]])), METADATA, "finite"),
        (arrays(lrs=np.array([[1.0, np.inf], [1, 1]])), METADATA, "finite"),
        (arrays(lrs=np.ones((2, 2, 1))), METADATA, "finite numbers"),
        (arrays(lrs=np.ones(())), METADATA, "must be a list"),
        (arrays(lrs=np.ones((3, 2))), METADATA, "2 x 2"),
    ],
)
def test_safetensors_with_wrong_content_are_refused(
    tmp_path: Path, content: dict[str, np.ndarray], metadata: dict[str, str] | None, fault: str
) -> None:
    path = tmp_path / "profile.safetensors"
    path.write_bytes(safetensors_bytes(content, metadata))
    with pytest.raises(ProfileError, match=fault):
        LRProfile.load(path)
    refused(path)


def test_a_header_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(path)


def test_half_precision_brain_floats_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "profile.safetensors"
    save_file({name: torch.ones(2, 2, dtype=torch.bfloat16) for name in arrays()}, path, METADATA)
    refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_huge_file_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"profile{suffix}"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)  # a sparse file: it takes no room
    assert "larger than" in refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folders_and_missing_files_are_refused(tmp_path: Path, suffix: str) -> None:
    assert "no such file" in refused(tmp_path / f"missing{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "not a file" in refused(tmp_path / f"folder{suffix}")


def test_other_suffixes_are_refused(tmp_path: Path, profile: LRProfile) -> None:
    for call in (profile.save, LRProfile.load):
        with pytest.raises(ProfileError, match=r"ends in \.json or \.safetensors"):
            call(tmp_path / "profile.pt")
    assert not list(tmp_path.iterdir())


def test_a_profile_cannot_be_changed(profile: LRProfile) -> None:
    assert isinstance(profile.scales[0], tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.steps = ()


def test_str_is_short_and_tells_the_last_rates(profile: LRProfile) -> None:
    assert str(profile) == "LRProfile of 3 layers after 3 steps (2 records): stem 0.2, block 0.05, head 0.3"
    assert str(LRProfile(["a"], [1], [], [], [])) == "LRProfile of 1 layers after no step (0 records)"


# The numbers of the U


def test_converged_is_the_geometric_mean_of_the_last_quarter() -> None:
    rates = [[9.0, 9.0]] * 6 + [[1e-2, 4.0], [1e-4, 9.0]]
    converged = profile_of(rates, steps=[10, 20, 30, 40, 50, 60, 70, 80]).converged()
    assert converged == pytest.approx({"layer0": 1e-3, "layer1": 6.0})


def test_converged_goes_by_steps_and_not_by_records() -> None:
    """Records thinned at the start: after 3/4 of 100 steps stand two of the three."""
    assert profile_of([[9.0], [2.0], [8.0]], steps=[75, 76, 100]).converged() == pytest.approx({"layer0": 4.0})


def test_a_decay_to_zero_and_a_frozen_layer_have_no_logarithm() -> None:
    rates = [[1e-2, 0.0, 1e-1], [0.0, 0.0, 0.0]]
    assert profile_of(rates, steps=[99, 100]).converged() == pytest.approx({"layer0": 1e-2, "layer1": 0, "layer2": 0.1})


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ([-1, -3, -2], (2, 1, 1)),
        ([-3, -1, -2], (-2, -1, -2)),
        ([-4, -3, -2], (-1, 1, -1)),
        ([-1, -2, -4, -1], (2, 2, 2)),  # thirds of 1, 2 and 1 depths
        ([-1, -2, -2, -4, -3], (2 - 1 / 3, -1 / 3, -1 / 3)),  # 1, 3, 1
        # ResNet-18, 10 depths, thirds of 3, 4 and 3: means -2, -3.5, -2
        ([-1, -2, -3, -3, -4, -4, -3, -3, -2, -1], (1.5, 1.5, 1.5)),
    ],
)
def test_summary_by_hand(logs: list[float], expected: tuple[float, float, float]) -> None:
    summary = profile_of([[10.0**log for log in logs]]).summary()
    assert isinstance(summary, ProfileSummary)
    assert summary == pytest.approx(expected)


def test_summary_goes_by_depth_and_counts_each_depth_once() -> None:
    """I2: three layers share depth 1 (mean log -2), two depth 2 (-3), the head is depth 3 (-1)."""
    rates = [[10.0**log for log in (-1, -2, -4, -3, -2, -1)]]
    summary = profile_of(rates, depths=[1, 1, 2, 1, 2, 3]).summary()
    assert summary == pytest.approx((1, 2, 1))


def test_summary_leaves_frozen_layers_out() -> None:
    assert profile_of([[1e-1, 0.0, 1e-3, 1e-2]]).summary() == pytest.approx((2, 1, 1))


def test_summary_does_not_depend_on_the_schedule() -> None:
    logs = [-1, -3, -2]
    flat = profile_of([[10.0**log for log in logs]] * 4)
    decayed = profile_of([[math.exp(-t) * 10.0**log for log in logs] for t in range(4)])
    assert decayed.summary() == pytest.approx(flat.summary())


@pytest.mark.parametrize(
    "refused",
    [
        profile_of([[0.1, 0.1]]),
        profile_of([[0.1, 0.1, 0.1]], depths=[1, 1, 2]),
        profile_of([[0.1, 0.0, 0.1]]),
    ],
    ids=["two layers", "two depths", "one of three frozen"],
)
def test_summary_refuses_fewer_than_three_depths(refused: LRProfile) -> None:
    with pytest.raises(ProfileError, match="at least 3 depths with a rate above 0, and this profile has 2"):
        refused.summary()


def test_summary_refuses_an_empty_record() -> None:
    with pytest.raises(ProfileError, match="has no records"):
        LRProfile(["a", "b", "c"], [1, 2, 3], [], [], []).summary()


# Replay

LEARNED = LRProfile(
    ("0", "2"), (1, 2), (2, 3, 6), [[2.0, 0.5], [0.25, 3.0], [1.5, 0.0]], [[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]]
)
# Steps 1 to 9 by hand: nothing learned before step 2, the last record holds on.
BY_HAND = [(1, 1), (2, 0.5), (0.25, 3), (0.25, 3), (0.25, 3), (1.5, 0), (1.5, 0), (1.5, 0), (1.5, 0)]
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
}


def make(kind: str) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    groups = param_groups(net, map_layers(net, torch.empty(2, 3)), lr=0.1, weight_decay=0.01)
    assert len(groups) == 4  # decayed and not, of two layers
    return net, OPTIMIZERS[kind](groups)


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    net(data).square().mean().backward()
    optimizer.step()


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def by_hand(kind: str) -> list[torch.Tensor]:
    """The reference: rates multiplied by hand around each step, and a schedule that never sees them."""
    net, optimizer = make(kind)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
    trajectory = []
    for step, factors in enumerate(BY_HAND):
        scheduled = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= factors[("0", "2").index(group["layer"])]
        train_step(net, optimizer, step)
        for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
            group["lr"] = lr
        scheduler.step()
        trajectory.append(weights(net))
    return trajectory


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_replay_is_the_run_by_hand_step_for_step(kind: str) -> None:
    expected = by_hand(kind)
    net, optimizer = make(kind)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
    keys = [set(group) for group in optimizer.param_groups]
    with LEARNED.replay(optimizer) as replay:
        for step, weights_by_hand in enumerate(expected):
            train_step(net, optimizer, step)
            scheduler.step()
            assert torch.equal(weights(net), weights_by_hand)
            assert [group["lr"] for group in optimizer.param_groups] == [0.1 * 0.5 ** ((step + 1) // 4)] * 4
        assert replay.step == 9
    assert [set(group) for group in optimizer.param_groups] == keys
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not torch.equal(expected[-1], expected[-2])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("load_first", [True, False])
@pytest.mark.parametrize("done", range(1, 8))
def test_a_resumed_replay_goes_on_where_it_stood(tmp_path: Path, kind: str, load_first: bool, done: int) -> None:
    expected = by_hand(kind)
    net, optimizer = make(kind)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
    LEARNED.replay(optimizer)
    for step in range(done):
        train_step(net, optimizer, step)
        scheduler.step()
    parts = {"net": net, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint.pt")

    net, optimizer = make(kind)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
    parts = {"net": net, "optimizer": optimizer, "scheduler": scheduler}
    if not load_first:
        LEARNED.replay(optimizer)
    for name, state in torch.load(tmp_path / "checkpoint.pt", weights_only=True).items():
        parts[name].load_state_dict(state)
    if load_first:
        LEARNED.replay(optimizer)
    for step in range(done, 9):
        train_step(net, optimizer, step)
        scheduler.step()
        assert torch.equal(weights(net), expected[step])


@pytest.mark.parametrize("every", [1, 3])
def test_replay_repeats_what_metalr_did_without_a_meta_pass(every: int) -> None:
    torch.manual_seed(1)
    data = torch.randn(10, 2, 8, 3, dtype=torch.float64)

    def run(profile: LRProfile | None) -> tuple[torch.Tensor, LRProfile | None]:
        net, _ = make("sgd")
        net.double()
        optimizer = OPTIMIZERS["sgd"](param_groups(net, map_layers(net, data[0, 0]), lr=0.1))
        metalr = MetaLR(optimizer, hyper_lr=5.0, rule="proportional", every=every) if profile is None else None
        if profile is not None:
            profile.replay(optimizer)
        for train, meta in data:
            optimizer.zero_grad()
            net(train).square().mean().backward()
            optimizer.step()
            if metalr is not None and metalr.due:
                optimizer.zero_grad()
                with meta_pass(net):
                    net(meta).square().mean().backward()
                metalr.adapt()
        return weights(net), metalr and metalr.profile()

    learned, profile = run(None)
    assert profile is not None
    assert max(abs(scale - 1) for scale in profile.scales[-1]) > 0.05
    assert len(profile.steps) == 10 // every
    torch.testing.assert_close(run(profile)[0], learned, rtol=1e-12, atol=1e-14)


def named_optimizer(names: list[str]) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "layer": name} for name in names], lr=1.0)


def factors_of(layers: list[str], names: list[str]) -> dict[str, float]:
    """Factor 1, 2, 3, ... for the profile's layers in order, as the optimizer's layers see them."""
    size = len(layers)
    scales = [[float(index) for index in range(1, size + 1)]]
    return LRProfile(layers, range_list(size), [1], scales, scales).replay(named_optimizer(names)).factors(1)


def range_list(size: int) -> list[int]:
    return list(range(1, size + 1))


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["a.0", "a.1", "b"], ["a.0", "a.1", "b"]),
        (["a.0", "a.1", "b"], ["network.a.0", "network.a.1", "network.b"]),
        (["model.a.0", "model.a.1", "model.b"], ["a.0", "a.1", "b"]),
        (["model.a.0", "model.a.1", "model.b"], ["network.a.0", "network.a.1", "network.b"]),
        (
            ["model.0", "model.1", "model.2"],
            ["network.module.model.0", "network.module.model.1", "network.module.model.2"],
        ),
    ],
)
def test_replay_finds_layers_behind_another_hosts_prefix(layers: list[str], names: list[str]) -> None:
    assert list(factors_of(layers, names).values()) == [1.0, 2.0, 3.0]


def test_replay_of_a_part_strips_no_more_than_it_must() -> None:
    """The tuned layers share a module of their own; it is no host's prefix."""
    with pytest.warns(UserWarning, match="layers encoder.0 are not in the optimizer"):
        found = factors_of(["encoder.0", "decoder.0", "decoder.1"], ["net.decoder.0", "net.decoder.1"])
    assert found == {"net.decoder.0": 2.0, "net.decoder.1": 3.0}


def test_groups_of_one_layer_all_match_in_any_order() -> None:
    assert factors_of(["a", "b"], ["b", "a", "b", "a"]) == {"b": 2.0, "a": 1.0}


def test_another_network_is_refused_with_both_sides_listed(profile: LRProfile) -> None:
    optimizer = named_optimizer(["stem", "layer1", "fc"])
    with pytest.raises(ProfileError) as caught:
        profile.replay(optimizer)
    message = str(caught.value)
    assert "2 of the optimizer's 3 layers" in message
    assert "optimizer: stem, layer1, fc" in message
    assert "profile:   stem, block, head" in message
    assert "replay_step" not in optimizer.param_groups[0]
    assert not optimizer._optimizer_step_pre_hooks


def test_a_group_of_an_unknown_layer_added_later_is_refused(profile: LRProfile) -> None:
    optimizer = named_optimizer(["stem", "block", "head"])
    profile.replay(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "layer": "other"})
    with pytest.raises(ProfileError, match="another network"):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0] * 4


def test_a_step_that_fails_is_not_counted_and_the_rates_come_back(profile: LRProfile) -> None:
    optimizer = named_optimizer(["stem", "block", "head"])
    replay = profile.replay(optimizer)

    def fail() -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(fail)
    assert replay.step == 0
    optimizer.step()
    assert replay.step == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(fail)
    replay.detach()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0] * 3


def test_a_tensor_rate_shared_by_all_groups_stays_as_it_is(profile: LRProfile) -> None:
    shared = torch.tensor(1.0)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [p], "layer": n} for p, n in zip(parameters, profile.layers, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=shared, foreach=False)
    with profile.replay(optimizer):
        sum(parameters).sum().backward()
        optimizer.step()
    assert [p.item() for p in parameters] == [-2.0, -0.5, -3.0]
    assert shared.item() == 1.0
    assert all(group["lr"] is shared for group in optimizer.param_groups)

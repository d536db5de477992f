"""The opponents in timm: optimizers by name in timm's factory, and methods in the launcher of train.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from prodigyopt import Prodigy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.optim._optim_factory import default_registry
from torch import nn

import layertune_timm
from layertune import AutoRGN, OptimizerError
from layertune.hosts.optimizers import OPTIMIZERS
from layertune.hosts.split_prodigy import SplitProdigy
from layertune_timm import register_optimizers, train
from layertune_timm.optimizer_factory import LayerwiseFactory
from layertune_timm.train_options import Opponent, Scheme, read_options

OURS = Path(__file__).parents[2] / "helpers" / "timm_script.py"
OPEN_FILES = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves closing to the garbage
MODEL = "--model resnet18 --model-kwargs channels=(8,16,32,64) --num-classes 2"
TRAINING = "--input-size 3 32 32 --batch-size 8 --warmup-epochs 0"


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18", channels=(8, 8, 8, 8), num_classes=2, **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 100)):
        folder = tmp_path / "images" / "train" / label
        folder.mkdir(parents=True)
        for number in range(8):
            Image.fromarray(draw.integers(low, low + 120, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def launched(images: Path, options: str, experiment: str, *more: str) -> dict[str, Any]:
    theirs = [*MODEL.split(), *TRAINING.split(), "--output", str(images.parent), "--experiment", experiment, *more]
    train.main(["--script", str(OURS), *options.split(), "--", str(images), *theirs])
    return torch.load(images.parent / experiment / "last.pth.tar", weights_only=False)


def test_timms_factory_makes_the_optimizer_of_the_package() -> None:
    names = register_optimizers()
    assert register_optimizers() == names == [name.replace("_", "") for name in OPTIMIZERS]
    by_timm, direct = small(), small()
    optimizer = create_optimizer_v2(by_timm, "prodigy", lr=1.0, weight_decay=0.0)
    assert type(optimizer) is Prodigy
    step(by_timm, optimizer)
    step(direct, Prodigy(direct.parameters()))
    for one, other in zip(by_timm.state_dict().values(), direct.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_works_with_the_groupers(name: str) -> None:
    register_optimizers()
    model = small()
    options = {"lr": OPTIMIZERS[name].lr, "weight_decay": 0.01, "betas": (0.9, 0.99)}
    optimizer = create_optimizer_v2(model, name.replace("_", ""), param_group_fn=layertune_timm.all_layers(), **options)
    step(model, optimizer, 10)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}
    if name == "prodigy_split":
        assert isinstance(optimizer, SplitProdigy)
        assert len({group["d"] for group in optimizer.param_groups}) > 1


def test_a_decay_of_rates_that_a_scheduler_makes_is_refused_for_one_estimate() -> None:
    register_optimizers()
    with pytest.raises(OptimizerError, match="prodigy takes one learning rate for all groups"):
        create_optimizer_v2(small(), "prodigy", lr=1.0, param_group_fn=layertune_timm.layer_decay(0.5))


def test_a_name_of_timm_itself_keeps_timms_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = default_registry.get_optimizer_info("sgd")
    monkeypatch.setitem(default_registry._optimizers, "prodigy", theirs)
    assert "prodigy" not in register_optimizers()
    assert default_registry.get_optimizer_info("prodigy") is theirs
    assert "ldog" in list_optimizers()


@OPEN_FILES
@pytest.mark.slow
def test_the_launcher_trains_by_an_optimizer_of_another_package(images: Path) -> None:
    saved = launched(images, "--param-groups all_layers", "run", "--opt", "prodigysplit", "--lr", "1", "--epochs", "2")
    assert len({group["d"] for group in saved["optimizer"]["param_groups"]}) > 1


@OPEN_FILES
@pytest.mark.slow
def test_auto_rgn_sets_the_rates_of_layers(images: Path) -> None:
    saved = launched(images, "--opponent auto_rgn", "run", "--lr", "0.05", "--epochs", "2")
    assert all(len(group["rgn"]) == 4 for group in saved["optimizer"]["param_groups"])


@OPEN_FILES
@pytest.mark.slow
@pytest.mark.parametrize(("opponent", "tuned"), [("lp_ft:2", [1, 1, 10]), ("gradual_unfreezing", [1, 2, 3])])
def test_phases_follow_timms_epochs_also_in_a_resumed_run(images: Path, opponent: str, tuned: list[int]) -> None:
    def moved(experiment: str, *more: str) -> tuple[int, dict[str, Any]]:
        """The number of layers that the optimizer has a momentum of."""
        options = ["--opt", "momentum", "--lr", "0.05", "--epochs", "3", *more]
        saved = launched(images, f"--opponent {opponent}", experiment, *options)
        groups, state = saved["optimizer"]["param_groups"], saved["optimizer"]["state"]
        layers = {group["layer"] for group in groups for number in group["params"] if number in state}
        return len(layers), saved["state_dict"]

    first, _ = moved("first", "--stop", "1")
    second, _ = moved("second", "--stop", "2")
    third, whole = moved("third")
    assert [first, second, third] == tuned
    _, resumed = moved("resumed", "--resume", str(images.parent / "second" / "last.pth.tar"))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_l2_sp_pulls_towards_the_weights_at_the_start() -> None:
    model, plain = small(), small()
    with LayerwiseFactory(Scheme("all_layers"), None, Opponent("l2_sp", (0.5, 0.1))):
        optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.0)
        step(model, optimizer, 2)
    start = {name: p.detach().clone() for name, p in plain.named_parameters()}
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(1)
    plain.train()
    for _ in range(2):
        reference.zero_grad()
        loss = plain(torch.randn(4, 3, 32, 32, generator=generator)).square().mean()
        for name, p in plain.named_parameters():
            head = name.startswith("fc.")
            loss = loss + (0.1 if head else 0.5) / 2 * (p if head else p - start[name]).square().sum()
        loss.backward()
        reference.step()
    for one, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_schedule_free_optimizer_follows_the_mode_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    with LayerwiseFactory(Scheme("all_layers"), None):
        optimizer = timm.optim.create_optimizer_v2(model, opt="schedulefreeadamw", lr=0.1)
        step(model, optimizer)
        trained = model.fc.weight.detach().clone()
        model.eval()(torch.zeros(1, 3, 32, 32))
        assert not torch.equal(model.fc.weight, trained)
        model.train()(torch.zeros(2, 3, 32, 32))
        torch.testing.assert_close(model.fc.weight.detach(), trained)
    assert not model._forward_pre_hooks
    assert "no place to renew them" in caplog.text


def test_auto_rgn_is_detached_at_the_end() -> None:
    model = small()
    with LayerwiseFactory(Scheme("all_layers"), None, Opponent("auto_rgn")):
        optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.1)
    AutoRGN(optimizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--opponent lpft", "--opponent takes auto_rgn, l2_sp:ALPHA,BETA, lp_ft:EPOCHS"),
        ("--opponent l2_sp:1", "--opponent takes auto_rgn"),
        ("--opponent lp_ft:x", "--opponent takes auto_rgn"),
        ("--opponent lp_ft:0.5", "a whole number of epochs from 1, not 0.5"),
        ("--opponent lp_ft --param-groups last_layer", "leave --param-groups last_layer out"),
        ("--opponent auto_rgn --metalr streaming", "both set the rates of layers; leave one out"),
    ],
)
def test_mistakes_end_in_one_line(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options([*options.split(), "--", "data"])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_numbers_of_an_opponent_have_defaults() -> None:
    assert read_options(["--opponent", "lp_ft"]).opponent == Opponent("lp_ft", (5,))
    assert read_options(["--opponent", "l2_sp:0.1,0"]).opponent == Opponent("l2_sp", (0.1, 0.0))

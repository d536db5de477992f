"""The launcher of timm's train.py, with a script of timm's parts, and with timm's own script where it is given."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.optim
import torch
from PIL import Image

from layertune import LRProfile, ModelError, OptimizerError
from layertune.hosts.report import FIGURE, PROFILE
from layertune.metalr.settings import MetaLRSettings
from layertune_timm import train
from layertune_timm.optimizer_factory import LayerwiseFactory
from layertune_timm.train_options import Scheme, read_options

OURS = Path(__file__).parents[2] / "helpers" / "timm_script.py"
TIMMS = os.environ.get(train.SCRIPT)
MODEL = ["--model", "resnet18", "--model-kwargs", "channels=(8,16,32,64)", "--num-classes", "2"]
TRAINING = "--input-size 3 32 32 --batch-size 8 --lr 0.05 --warmup-epochs 0 --clip-grad 1.0 --model-ema"
ON_A_CPU = "--device cpu --workers 1 --no-prefetcher --checkpoint-hist 1"  # what timm's own script asks too
LEARNING = ["--param-groups", "bidirectional:3,6", "--metalr", "streaming"]
OPEN_FILES = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves closing to the garbage
LAYERS = ("conv1", "layer1.0", "layer3.1", "layer4.0", "layer4.1", "fc")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An ImageFolder of 16 training and 8 validation images, in dark and bright."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 4)):
        for label, low in (("dark", 0), ("bright", 100)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(low, low + 120, (32, 32, 3), dtype=np.uint8)).save(
                    folder / f"{number}.png"
                )
    return tmp_path / "images"


def timms_arguments(images: Path, experiment: str, *more: str) -> list[str]:
    output = ["--output", str(images.parent), "--experiment", experiment]
    return [str(images), *MODEL, *TRAINING.split(), *output, *more]


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "layertune_timm.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def logged_layers(log: str) -> tuple[str, ...]:
    """Return the layers in the last table of the log."""
    _, _, table = log.rpartition("and the factors learned:\n")
    return tuple(line.split()[0] for line in table.splitlines() if " x " in line)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "last.pth.tar", weights_only=False)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
def test_the_command_trains_and_reports_the_learned_rates(images: Path) -> None:
    done = launched("--script", str(OURS), *LEARNING, "--", *timms_arguments(images, "run", "--epochs", "2"))
    assert done.returncode == 0, done.stderr
    assert "Learning rates after 4 steps, and the factors learned:" in done.stderr
    assert logged_layers(done.stderr) == LAYERS
    profile = LRProfile.load(images.parent / "run" / PROFILE)
    assert (profile.layers, profile.depths, profile.steps) == (LAYERS, (1, 2, 7, 8, 9, 10), (1, 2, 3, 4))
    assert len(set(profile.scales[-1])) == 1 < len(set(profile.scales)), "the rule free learns one factor"
    assert (images.parent / "run" / FIGURE).stat().st_size > 0
    groups = checkpoint(images.parent / "run")["optimizer"]["param_groups"]
    saved = {group["layer"]: float(group["meta_scale"]) for group in groups}
    assert tuple(saved.values()) == pytest.approx(profile.scales[-1])


@OPEN_FILES
@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one(images: Path) -> None:
    def run(experiment: str, *more: str) -> tuple[LRProfile, dict]:
        theirs = timms_arguments(images, experiment, "--epochs", "3", *more)
        train.main(["--script", str(OURS), *LEARNING, "--", *theirs])
        folder = images.parent / experiment
        return LRProfile.load(folder / PROFILE), checkpoint(folder)

    whole_profile, whole = run("whole")
    run("first", "--stop", "1")
    profile, resumed = run("resumed", "--resume", str(images.parent / "first" / "last.pth.tar"))
    assert profile == whole_profile
    assert_same(resumed["state_dict"], whole["state_dict"])
    assert_same(resumed["state_dict_ema"], whole["state_dict_ema"])


@OPEN_FILES
@pytest.mark.slow
def test_layer_decay_trains_as_timms_own_argument(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timms_arguments(images, "theirs", "--epochs", "2", "--layer-decay", "0.75")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(OURS), *theirs])
        runpy.run_path(str(OURS), run_name="__main__")
    ours = timms_arguments(images, "ours", "--epochs", "2")
    train.main(["--script", str(OURS), "--param-groups", "layer_decay:0.75", "--", *ours])
    assert_same(checkpoint(images.parent / "ours")["state_dict"], checkpoint(images.parent / "theirs")["state_dict"])


@pytest.mark.slow
@pytest.mark.skipif(TIMMS is None, reason=f"timm's own train.py is not at hand: {train.SCRIPT} does not name it")
def test_timms_own_script_trains_and_resumes(images: Path) -> None:
    def run(experiment: str, *more: str) -> LRProfile:
        done = launched(*LEARNING, "--", *timms_arguments(images, experiment, *ON_A_CPU.split(), *more))
        assert done.returncode == 0, done.stderr
        assert "*** Best metric" in done.stderr
        assert logged_layers(done.stderr) == LAYERS
        return LRProfile.load(images.parent / experiment / PROFILE)

    first = run("first", "--epochs", "2")
    resumed = run("resumed", "--epochs", "3", "--resume", str(images.parent / "first" / "last.pth.tar"))
    assert (first.steps, resumed.steps) == ((1, 2, 3), (1, 2, 3, 4, 5))
    assert resumed.scales[:3] == first.scales
    assert len(set(resumed.scales[-1])) == len(LAYERS)


def small() -> torch.nn.Module:
    return timm.create_model("resnet18", channels=(8, 8, 8, 8), num_classes=2)


def made_by(factory: LayerwiseFactory, model: torch.nn.Module, **more: object) -> torch.optim.Optimizer:
    with factory:
        return timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, **more)


def test_layers_that_a_scheme_leaves_out_are_frozen_inside_the_block() -> None:
    model, own = small(), timm.optim.create_optimizer_v2
    with LayerwiseFactory(Scheme("bidirectional", (3, 6)), MetaLRSettings(hyper_lr=0.1, streaming=True)) as factory:
        optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in model.parameters() if p.requires_grad} == trained
        assert tuple(factory.metalr.lrs) == LAYERS
    assert timm.optim.create_optimizer_v2 is own
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(key.startswith("meta") for group in optimizer.param_groups for key in group)


def test_timms_options_for_its_fallback_reach_the_groups() -> None:
    model = timm.create_model("test_vit")
    asked = {"fallback_list": ["*.attn.*"], "fallback_no_weight_decay": True}
    groups = made_by(LayerwiseFactory(Scheme("all_layers"), None), model, **asked).param_groups
    fallback = {id(p) for group in groups if group.get("use_fallback") for p in group["params"]}
    named = {name for name, p in model.named_parameters() if id(p) in fallback}
    assert named == {name for name, _ in model.named_parameters() if ".attn." in name} | {"pos_embed", "cls_token"}


def test_two_schemes_at_once_are_one_clear_error() -> None:
    with pytest.raises(OptimizerError, match=r"--param-groups layer_decay:0\.5"):
        made_by(LayerwiseFactory(Scheme("all_layers"), None), small(), layer_decay=0.5)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import sys; assert sys.argv[1:] == ['--lr', '1']", "ended without a call of timm.optim.create_optimizer_v2"),
        ("import timm.optim; timm.optim.create_optimizer_v2([])", "if it gets the model, but it got a list"),
    ],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing_behind(
    script: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(script)
    before = (sys.argv, sys.path.copy(), timm.optim.create_optimizer_v2, timm.utils.get_outdir)
    with pytest.raises(SystemExit) as ended:
        train.main(["--script", str(tmp_path / "train.py"), "--param-groups", "last", "--", "--lr", "1"])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert expected in error
    assert (sys.argv, sys.path, timm.optim.create_optimizer_v2, timm.utils.get_outdir) == before


def test_the_script_is_given_or_named_by_a_variable_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(train.SCRIPT, raising=False)
    with pytest.raises(ModelError, match=f"--script PATH/train.py or {train.SCRIPT}"):
        train.find_script(None)
    here, named, given = (tmp_path / name for name in ("train.py", "named.py", "given.py"))
    for file in (here, named, given):
        file.touch()
    assert train.find_script(None) == Path("train.py")
    monkeypatch.setenv(train.SCRIPT, str(named))
    assert train.find_script(None) == named
    assert train.find_script(given) == given


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("all", Scheme("all_layers")),
        ("last", Scheme("last_layer")),
        ("layer_wise:8", Scheme("layer_wise", (8,))),
        ("bidirectional:3,6", Scheme("bidirectional", (3, 6))),
        ("layer_decay:0.75", Scheme("layer_decay", (0.75,))),
        ("inverse_size:0.5", Scheme("inverse_size", (0.5,))),
        ("norm_only", Scheme("norm_only")),
    ],
)
def test_each_scheme_can_be_named(text: str, scheme: Scheme) -> None:
    options = read_options(["--param-groups", text, "--", "data", "--lr", "1"])
    assert (options.scheme, options.metalr, options.arguments) == (scheme, None, ("data", "--lr", "1"))
    assert made_by(LayerwiseFactory(scheme, None), small()).param_groups


def test_settings_reach_metalr() -> None:
    given = "--metalr streaming --hyper-lr 0.5 --rule cosine --every 2 --min-lr 1e-5 --max-lr 1 --max-change 4"
    options = read_options(given.split())
    expected = {"hyper_lr": 0.5, "rule": "cosine", "every": 2, "min_lr": 1e-5, "max_lr": 1.0, "max_change": 4.0}
    assert options.metalr == MetaLRSettings(streaming=True, **expected)
    with LayerwiseFactory(options.scheme, options.metalr) as factory:
        timm.optim.create_optimizer_v2(small(), "sgd", lr=0.1)
        assert factory.metalr.settings == options.metalr


def test_settings_that_are_not_given_are_the_cores() -> None:
    assert read_options(["--metalr", "streaming"]).metalr == MetaLRSettings(streaming=True)
    options = read_options(["--metalr", "streaming", "--rule", "cosine"])
    assert options.metalr == MetaLRSettings(streaming=True, rule="cosine")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "give --param-groups, --metalr or both"),
        ("--param-groups bidirectional:3", "not 'bidirectional:3'"),
        ("--param-groups bidirectional:3,x", "with numbers, not 'bidirectional:3,x'"),
        ("--param-groups middle", "layer_decay:RATE, inverse_size:EXPONENT or norm_only, not 'middle'"),
        ("--param-groups all --rule cosine", "--rule has no effect without --metalr streaming"),
        ("--metalr streaming --rule additive", 'rule="additive" needs a hyper_lr'),
        (
            "--metalr streaming --rule fast",
            "rule must be one of free, additive, proportional, cosine, joint, not 'fast'",
        ),
        ("--metalr streaming --every 0", "every must be a whole number from 1, not 0"),
        ("--metalr exact", "for which timm's train.py has no place"),
        ("--metalr fast", "--metalr takes streaming, not 'fast'"),
        ("--metalr streaming data --lr 1", "-- [arguments of timm's train.py]"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(arguments: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(arguments.split())
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_timms_arguments_before_the_dashes_are_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--metalr", "streaming", "data", "--model", "resnet18"])
    assert "data --model resnet18; arguments of timm's train.py come after --" in capsys.readouterr().err

"""Learned rates in nnU-Net's trainers: training, schedule, checkpoints, settings and reports."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from torch import GradScaler
from torch._dynamo import OptimizedModule

from layertune import LRProfile
from layertune.hosts.report import FIGURE, PROFILE
from layertune.metalr.settings import MetaLRSettings
from layertune_nnunet import MetaLRMixin, MetaLRStreamingMixin, nnUNetTrainerMetaLR, nnUNetTrainerMetaLRStreaming
from nnunet_runs import LABELS, REGIONS, STEPS, WITH_IGNORED, kill, make, resume, same, seed, train, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nnunet")]

BOTH = pytest.mark.parametrize("trainer", [nnUNetTrainerMetaLR, nnUNetTrainerMetaLRStreaming])


class SmallPrimus(AbstractPrimus):
    """Primus with two blocks; its own classes have twelve."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,  # noqa: ARG004 - nnU-Net looks for this name
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        *_: Any,
    ) -> torch.nn.Module:
        from dynamic_network_architectures.architectures.primus import Primus

        size = configuration_manager.patch_size
        return Primus(num_input_channels, 36, (8, 8, 8), num_output_channels, 2, 2, size, init_values=0.1)


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


@BOTH
@pytest.mark.parametrize("setting", ["2d", "3d_fullres"])
def test_a_hyper_lr_of_0_trains_as_nnunet_bit_for_bit(trainer: type, setting: str) -> None:
    stock = train(nnUNetTrainer, setting)
    assert same(train(trainer, setting, hyper_lr=0.0), stock)
    assert not same(train(trainer, setting), stock)


@pytest.mark.parametrize(
    "base",
    [
        nnUNetTrainerDA5,
        nnUNetTrainerNoMirroring,
        nnUNetTrainerBN,
        nnUNetTrainerNoDeepSupervision,
        nnUNetTrainerAdam,
        nnUNetTrainer_warmup,
        SmallPrimus,
    ],
)
def test_it_goes_with_other_trainers(base: type) -> None:
    mixed = type(f"{base.__name__}MetaLR", (MetaLRMixin, base), {})
    assert same(train(mixed, hyper_lr=0.0, epochs=1), train(base, epochs=1))
    learned = train(mixed, epochs=1).profile
    assert len(set(learned.scales[-1])) == len(learned.layers) > 4


@BOTH
@pytest.mark.parametrize(("labels", "setting"), [(REGIONS, "3d_fullres"), (WITH_IGNORED, "2d")])
def test_regions_and_an_ignore_label_are_trained_as_nnunet_does(trainer: type, labels: Any, setting: str) -> None:
    stock = train(nnUNetTrainer, setting, labels=labels, epochs=1)
    assert same(train(trainer, setting, labels=labels, epochs=1, hyper_lr=0.0), stock)
    assert len(set(train(trainer, setting, labels=labels, epochs=1).profile.scales[-1])) > 3


@BOTH
@pytest.mark.parametrize("stop_at", [(1, 0), (2, 2)])
def test_a_killed_training_resumes_exactly(trainer: type, stop_at: tuple[int, int]) -> None:
    options: dict[str, Any] = {"epochs": 3, "every": 2, "save_every": 1 if stop_at[0] == 1 else 2}
    kill(trainer, stop_at, **options)
    continued = resume(trainer, **options)
    whole = train(trainer, **options)
    assert same(continued, whole)
    assert continued.profile == whole.profile
    assert continued.logger.get_value("lrs", step=None) == whole.logger.get_value("lrs", step=None)


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
def test_a_training_with_warm_up_resumes_where_pytorch_reads_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    class WarmUp(MetaLRMixin, nnUNetTrainer_warmup):
        # nnU-Net sets 50 in `__init__`; the schedule and the scheduler change after the first epoch.
        warmup_duration_whole_net = property(lambda _: 1, lambda _, __: None)

    kill(WarmUp, (2, 1), epochs=3)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        resume(WarmUp, epochs=3)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    continued, whole = resume(WarmUp, epochs=3), train(WarmUp, epochs=3)
    assert same(continued, whole)
    assert continued.profile == whole.profile


@BOTH
def test_a_finished_training_is_validated_again_and_not_changed_by_resuming(trainer: type) -> None:
    trained = train(trainer)
    only_validated = make(trainer)
    maybe_load_checkpoint(only_validated, continue_training=False, validation_only=True)
    assert same(only_validated, trained)
    continued = resume(trainer)
    assert same(continued, trained)
    assert continued.profile == trained.profile
    best = Path(trained.output_folder) / "checkpoint_best.pth"
    trained.load_checkpoint(str(best))  # as `--val_best` does, after the training
    saved = torch.load(best, weights_only=False)["network_weights"]
    assert all(torch.equal(weight, saved[name]) for name, weight in trained.network.state_dict().items())


def test_the_schedule_is_nnunets_and_rates_are_factors_on_it() -> None:
    stock, ours = train(nnUNetTrainer), train(nnUNetTrainerMetaLR)
    schedule = stock.logger.get_value("lrs", step=None)
    assert ours.logger.get_value("lrs", step=None) == schedule
    assert len(ours.optimizer.param_groups) == len(stock.optimizer.param_groups)
    for step, scales, lrs in zip(ours.profile.steps, ours.profile.scales, ours.profile.lrs, strict=True):
        scheduled = schedule[(step - 1) // STEPS]
        assert lrs == pytest.approx([scheduled * scale for scale in scales])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, MetaLRSettings(rule="proportional", hyper_lr=0.1)),
        ({"rule": "cosine"}, MetaLRSettings(rule="cosine", hyper_lr=0.05)),
        ({"rule": "joint", "max_lr": 0.5}, MetaLRSettings(rule="joint", max_lr=0.5)),
        ({"rule": "additive", "hyper_lr": 1e-3}, MetaLRSettings(rule="additive", hyper_lr=1e-3)),
    ],
)
def test_settings_that_are_not_given_are_the_cores(values: dict[str, Any], expected: MetaLRSettings) -> None:
    exact, streaming = make(nnUNetTrainerMetaLR, "2d", **values), make(nnUNetTrainerMetaLRStreaming, "2d", **values)
    exact.initialize()
    streaming.initialize()
    expected = replace(expected, rule_of_0_1="proportional")
    assert exact.metalr.settings == expected
    assert streaming.metalr.settings == replace(expected, streaming=True)


def test_settings_may_be_set_in_the_trainers_init() -> None:
    made = make(nnUNetTrainerMetaLR, "2d")
    made.hyper_lr = 0.3
    made.initialize()
    assert made.metalr.hyper_lr == 0.3


def with_scaler(trainer: Any, **options: Any) -> Any:
    """Start a training with a gradient scaler, which nnU-Net has on CUDA only."""
    trainer.grad_scaler = GradScaler("cpu", growth_interval=100, **options)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


@BOTH
def test_nothing_is_learned_from_a_step_that_the_scaler_skips(trainer: type) -> None:
    ours = with_scaler(make(trainer), init_scale=2.0**10)
    before = [weight.clone() for weight in weights(ours)]
    batch = next(ours.dataloader_train)
    ours.train_step({**batch, "data": batch["data"] * float("inf")})
    assert all(torch.equal(a, b) for a, b in zip(weights(ours), before, strict=True))
    assert ours.grad_scaler.get_scale() == 2.0**9
    assert ours.metalr.steps == 0
    assert not ours.metalr.history
    for _ in range(2):
        ours.train_step(next(ours.dataloader_train))
    assert ours.metalr.steps == 2
    assert ours.metalr.history
    assert ours.grad_scaler._get_growth_tracker() == 2


def test_the_gradient_scale_does_not_change_the_rates() -> None:
    scaled, plain = with_scaler(make(nnUNetTrainerMetaLR), init_scale=2.0**10), make(nnUNetTrainerMetaLR)
    plain.on_train_start()
    plain.on_train_epoch_start()
    for trainer in (scaled, plain):
        seed(0)
        for _ in range(2):
            trainer.train_step(next(trainer.dataloader_val))
    assert scaled.metalr.lrs == pytest.approx(plain.metalr.lrs, rel=1e-6)
    assert plain.metalr.lrs != pytest.approx(dict.fromkeys(plain.metalr.lrs, 0.01), rel=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_compiler_compiles_once_for_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = partial(torch.compile, backend="eager")  # shows what the compiler is asked for
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda _: True)  # which it does on a GPU only
    # The loss meets two resolutions, and is compiled for both.
    monkeypatch.setattr(torch, "compile", lambda part: compiler(part) if hasattr(part, "decoder") else part)
    compiled = make(nnUNetTrainerMetaLR)
    compiled.on_train_start()
    compiled.on_train_epoch_start()
    assert isinstance(compiled.network, OptimizedModule)
    assert [layer.name for layer in compiled.layers][-1] == "decoder.seg_layers"
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            compiled.train_step(next(compiled.dataloader_train))
    assert len(compiled.metalr.history) == 3
    torch._dynamo.reset()


def test_the_rates_are_logged_drawn_and_saved() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.logged: list[tuple[str, float, int]] = []

        def log(self, key: str, value: Any, step: int) -> None:
            self.logged.append((key, value, step))

        update_config = log_summary = lambda *_: None

    trainer = make(nnUNetTrainerMetaLR, draws=True, epochs=2)
    trainer.logger.loggers.append(recorder := Recorder())  # where nnU-Net puts Weights & Biases
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert log_of(trainer).count("Learning rates by layer: encoder.stages.0.0.convs.0.conv ") == 2
    assert (folder / FIGURE).stat().st_size > 10_000
    profile = trainer.profile
    assert LRProfile.load(folder / PROFILE) == profile
    logged = [(key, step, value) for key, value, step in recorder.logged if key.startswith("lr/")]
    rows = [profile.lrs[STEPS - 1], profile.lrs[-1]]
    assert logged == [
        (f"lr/{layer}", epoch, pytest.approx(rate))
        for epoch, row in enumerate(rows)
        for layer, rate in zip(profile.layers, row, strict=True)
    ]


def test_rates_of_0_do_not_stop_the_training() -> None:
    trainer = train(nnUNetTrainerMetaLR, base_lr=0.0, epochs=1, draws=True)
    assert "WARNING: no figure of the learned rates was drawn: " in log_of(trainer)
    assert not (Path(trainer.output_folder) / FIGURE).exists()


@pytest.mark.parametrize(("depth", "depths"), [("I1", (1, 2, 3, 4, 5, 6)), ("I2", (1, 2, 3, 2, 1, 4))])
def test_layers_come_from_the_plans(depth: str, depths: tuple[int, ...]) -> None:
    trainer = train(nnUNetTrainerMetaLRStreaming, depth=depth, epochs=1)
    assert trainer.profile.depths == depths
    head = trainer.layers.head
    assert head.name == "decoder.seg_layers"
    assert {name for name, _ in trainer.network.named_parameters() if "seg_layers" in name} == set(head.parameters)
    assert f"6 layers, with depths by {depth}:" in log_of(trainer)


def test_streaming_has_no_meta_batches() -> None:
    trainer = make(nnUNetTrainerMetaLRStreaming)
    trainer.on_train_start()
    assert isinstance(trainer, MetaLRStreamingMixin)
    assert not hasattr(trainer, "dataloader_meta")


def test_nothing_is_left_on_the_optimizer() -> None:
    trainer = train(nnUNetTrainerMetaLR, epochs=1, labels=LABELS)
    hooks = [name for name, value in vars(trainer.optimizer).items() if name.endswith("_hooks") and value]
    assert not hooks
    assert set(trainer.optimizer.param_groups[0]) == set(train(nnUNetTrainer, epochs=1).optimizer.param_groups[0])

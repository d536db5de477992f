"""A fit with Lightning's callbacks: logs, reports, checkpoints, clean-up, freezing, the command line."""

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    LearningRateMonitor,
    ModelCheckpoint,
)
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from layertune import BiDirectional, InverseSize, LastLayer, LRProfile, map_layers, param_groups
from layertune_lightning import LayerFreezeCallback, MetaLRCallback
from lightning_runs import (
    LEARN,
    META,
    Batch,
    Module,
    Resumable,
    assert_equal,
    fit,
    samples,
    set_command_line,
    trainer,
)


def test_rates_are_logged_when_the_trainer_logs_and_drawn_at_the_end(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, version=0), TensorBoardLogger(tmp_path / "board", version=0)]
    callback = MetaLRCallback(**LEARN, figure=tmp_path / "figures" / "rates.png", output_dir=tmp_path / "results")
    monitor = LearningRateMonitor("step")
    fit(Module(schedule="step"), callback, monitor, logger=loggers, log_every_n_steps=2)
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr/net.0"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9]
    assert callback.profile is not None
    # The rate that the coming step starts from: the schedule's, times the factor learned before.
    factors = dict(zip(callback.profile.steps, callback.profile.scales, strict=True))
    scheduled = [0.05 * 0.7 ** int(row["step"]) for row in rows]
    expected = [rate * factors[int(row["step"])][0] for rate, row in zip(scheduled, rows, strict=True)]
    assert [float(row["lr/net.0"]) for row in rows] == pytest.approx(expected)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board" / "lightning_logs" / "version_0")).Reload()
    assert "learned rates" in events.Tags()["images"]
    assert {"lr/net.0", "lr/net.4", "lr/net.6", "lr-SGD"} <= set(events.Tags()["scalars"])
    assert (tmp_path / "figures" / "rates.png").stat().st_size > 10_000
    assert LRProfile.load(tmp_path / "results" / "learned_rates.json") == callback.profile
    assert (tmp_path / "results" / "learned_rates.png").stat().st_size > 10_000


class Crash(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyError("the power went")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("step", [3, 5, 8], ids=["mid epoch", "end of epoch", "second epoch"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"streaming": True}, {"meta_loader": META}, {"every": 2, "meta_loader": DataLoader(samples(2), 4, True)}],
    ids=["exact", "streaming", "list", "every"],
)
def test_a_run_that_died_resumes_bit_for_bit(settings: dict[str, Any], step: int, tmp_path: Path) -> None:
    def loader() -> Resumable:
        return Resumable(samples(), batch_size=4)

    def module() -> Module:
        made = Module(schedule="step")
        made.net[3].p = 0.0  # Lightning does not save the random state that dropout draws from
        return made

    whole, killed, resumed = module(), module(), module()
    through = MetaLRCallback(**LEARN, **settings)
    fit(whole, through, loader=loader())
    saving = ModelCheckpoint(tmp_path, "saved", every_n_train_steps=step, save_top_k=1)
    with pytest.raises(KeyError, match="the power went"):
        fit(
            killed, MetaLRCallback(**LEARN, **settings), Crash(step), saving, loader=loader(), enable_checkpointing=True
        )
    again = MetaLRCallback(**LEARN, **settings)
    fit(resumed, again, loader=loader(), seed=3, ckpt_path=checkpoint(tmp_path, step))
    assert again.lrs == through.lrs
    assert again.profile == through.profile
    assert_equal(resumed, whole)


def checkpoint(folder: Path, step: int) -> Path:
    (path,) = folder.glob("*.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == step
    return path


def keys(optimizer: torch.optim.Optimizer) -> set[str]:
    return {key for group in optimizer.param_groups for key in group if key.startswith("meta")}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_fit_detaches_and_a_later_checkpoint_still_holds_all(streaming: bool, tmp_path: Path) -> None:
    callback = MetaLRCallback(**LEARN, streaming=streaming)
    whole, half = Module(), Module()
    for module in (whole, half):
        module.net[3].p = 0.0
    run = fit(half, callback)
    optimizer = run.optimizers[0]
    assert not keys(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert callback.metalr is None
    run.save_checkpoint(tmp_path / "end.ckpt")
    again = MetaLRCallback(**LEARN, streaming=streaming)
    fit(half, again, max_epochs=4, ckpt_path=tmp_path / "end.ckpt")
    through = MetaLRCallback(**LEARN, streaming=streaming)
    fit(whole, through, max_epochs=4)
    assert again.profile == through.profile
    assert_equal(whole, half)


def test_a_second_fit_learns_anew() -> None:
    callback, module = MetaLRCallback(**LEARN), Module()
    run = fit(module, callback)
    run.fit_loop.max_epochs = 4
    run.fit(module, DataLoader(samples(), batch_size=4))
    assert callback.profile is not None
    assert callback.profile.steps == tuple(range(1, 11))


def test_an_exception_detaches_and_the_checkpoint_of_the_exception_still_holds_all(tmp_path: Path) -> None:
    class Exploding(Module):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            if self.trainer.global_step == 3:
                raise KeyError("overheated")
            return super().training_step(batch, batch_idx)

    callback = MetaLRCallback(**LEARN, streaming=True)
    run = trainer(callback, ModelCheckpoint(tmp_path, "failed", save_on_exception=True), enable_checkpointing=True)
    with pytest.raises(KeyError, match="overheated"):
        run.fit(Exploding(), DataLoader(samples(), batch_size=4))
    assert not keys(run.optimizers[0])
    assert not run.optimizers[0]._optimizer_step_pre_hooks
    (group,) = torch.load(tmp_path / "failed.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert group["meta_steps"] == 3
    assert set(group["meta_step"]["displacement"]) == set(range(8))
    assert callback.profile is not None
    assert group["meta_scale"].tolist() == list(callback.profile.scales[-1])


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(samples(), batch_size=4)


def test_the_command_line_takes_the_callback_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    set_command_line(monkeypatch)
    cli = LightningCLI(CommandLineModule, Data, save_config_callback=None, seed_everything_default=3)
    (callback,) = (found for found in cli.trainer.callbacks if isinstance(found, MetaLRCallback))
    assert callback.settings.hyper_lr == 0.3
    assert all(rate != 0.05 for rate in callback.lrs.values())


class CommandLineModule(Module):
    def __init__(self) -> None:
        super().__init__()


class ThawFirst(BaseFinetuning):
    """A callback that adds a param group in the second epoch, as Lightning's ``BackboneFinetuning`` does."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.net[:2])

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


def test_a_group_that_finetuning_adds_is_learned_too() -> None:
    class Partial(Module):
        def configure_optimizers(self) -> Any:
            return SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)

    callback = MetaLRCallback(**LEARN)
    run = fit(Partial(), callback, ThawFirst())
    assert len(run.optimizers[0].param_groups) == 2
    assert list(callback.lrs) == ["net.0", "net.4", "net.6"]
    assert callback.lrs["net.0"] != pytest.approx(
        0.005, rel=1e-6
    )  # a tenth of the first group's, times what was learned


@pytest.mark.parametrize(
    "layers",
    [
        lambda module: map_layers(module.net, torch.zeros(2, 4)),
        lambda module: map_layers(module, torch.zeros(2, 4), granularity="module"),
        lambda module: map_layers(module, matcher=lambda name: int("net.6" in name)),
    ],
    ids=["inner network", "module", "matcher"],
)
def test_layers_may_be_given(layers: Any) -> None:
    as_function, as_map = MetaLRCallback(**LEARN, layers=layers), MetaLRCallback(**LEARN, layers=layers(Module()))
    for callback in (as_function, as_map):
        module = Module()
        module.example_input_array = None
        fit(module, callback)
    assert as_function.lrs == as_map.lrs
    assert len(as_map.lrs) == len(layers(Module()))


def test_example_inputs_may_be_named() -> None:
    module, callback = Module(), MetaLRCallback(**LEARN)
    module.example_input_array = {"x": torch.zeros(2, 4)}
    fit(module, callback)
    assert list(callback.lrs) == ["net.0", "net.4", "net.6"]


def test_a_learned_factor_keeps_the_rates_of_a_policy() -> None:
    class Scaled(Module):
        def configure_optimizers(self) -> Any:
            return SGD(
                param_groups(self, map_layers(self, torch.zeros(2, 4)), lr=1.0, policy=InverseSize(0.5)), momentum=0.9
            )

    module, callback = Scaled(), MetaLRCallback(streaming=True)
    fit(module, callback)
    sizes = {
        name: sum(parameter.numel() for parameter in held)
        for name, held in map_layers(module, torch.zeros(2, 4)).parameters_of(module).items()
    }
    largest = max(callback.lrs.values())
    assert {name: rate / largest for name, rate in callback.lrs.items()} == pytest.approx(
        {name: (min(sizes.values()) / size) ** 0.5 for name, size in sizes.items()}
    )


def test_a_configuration_file_names_a_policy_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    set_command_line(monkeypatch)
    monkeypatch.setattr("sys.argv", ["train.py"])
    policy = {"class_path": "layertune.InverseSize", "init_args": {"exponent": 0.5}}
    callback = {"class_path": "layertune_lightning.LayerFreezeCallback", "init_args": {"policy": policy}}
    cli = LightningCLI(
        CommandLineModule, Data, run=False, args={"trainer": {"callbacks": [callback]}}, seed_everything_default=3
    )
    (made,) = (found for found in cli.trainer.callbacks if isinstance(found, LayerFreezeCallback))
    layers = map_layers(Module(), torch.zeros(2, 4))
    assert made.policy(layers) == InverseSize(0.5)(layers)


def test_frozen_layers_do_not_change_and_are_unfrozen_afterwards() -> None:
    module, callback = Module(), LayerFreezeCallback(BiDirectional(m=2, n=2))
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, callback, loader=DataLoader(samples(), batch_size=4))
    same = [torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    weight = {"net.0": same[0], "net.1": same[2], "net.4": same[4], "net.4 bias": same[5], "net.6": same[6]}
    assert [name for name, stays in weight.items() if stays] == ["net.4", "net.4 bias"]
    assert all(p.requires_grad for p in module.parameters())


def test_frozen_layers_are_unfrozen_after_an_exception() -> None:
    class Curious(Module):
        def configure_optimizers(self) -> Any:
            frozen.append([name for name, p in self.named_parameters() if not p.requires_grad])
            raise KeyError("no optimizer today")

    frozen: list[list[str]] = []
    module = Curious()
    with pytest.raises(KeyError):
        fit(module, LayerFreezeCallback(LastLayer()))
    assert len(frozen[0]) == 6
    assert all(p.requires_grad for p in module.parameters())

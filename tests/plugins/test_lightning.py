"""Lightning's callbacks against the loop written by hand, and against Lightning without them."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric, MetricCollection, SumMetric

import layertune.plugin
import layertune_lightning.factory
import lightning_processes
from layertune import BiDirectional, LastLayer, LayertuneError, MissingPackageError, map_layers
from layertune_lightning import LayerFreezeCallback, MetaLRCallback
from layertune_lightning.factory import VARIABLE, callbacks
from layertune_lightning.meta_batches import EndlessSampler, MetaBatches, Share
from lightning_runs import Batch, Module, Resumable, assert_equal, batches, by_hand, fit, samples, trainer, weights

LEARN: dict[str, Any] = {"hyper_lr": 0.3, "rule": "proportional"}
META = batches(seed=1, size=12)


def norm(parameters: list[Tensor]) -> None:
    nn.utils.clip_grad_norm_(parameters, 0.5)


def value(parameters: list[Tensor]) -> None:
    nn.utils.clip_grad_value_(parameters, 0.05)


def bf16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


@pytest.mark.parametrize("streaming", [False, True], ids=["exact", "streaming"])
@pytest.mark.parametrize(
    ("of_module", "of_trainer", "of_loop", "settings"),
    [
        pytest.param({}, {}, {}, {}, id="sgd"),
        pytest.param({"groups": True}, {}, {}, {}, id="groups"),
        pytest.param({"make": AdamW, "lr": 1e-2}, {}, {}, {"rule": "cosine", "hyper_lr": 0.1}, id="adamw"),
        pytest.param({}, {"gradient_clip_val": 0.5}, {"clip": norm}, {}, id="clip norm"),
        pytest.param(
            {}, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}, {"clip": value}, {}, id="clip value"
        ),
        pytest.param({}, {"accumulate_grad_batches": 2}, {"accumulate": 2}, {}, id="accumulate"),
        pytest.param({"schedule": "step"}, {}, {}, {}, id="step schedule"),
        pytest.param({"schedule": "epoch"}, {}, {}, {"rule": "additive", "max_lr": 1.0}, id="epoch schedule"),
        pytest.param({}, {"precision": "bf16-mixed"}, {"precision": bf16}, {}, id="bf16"),
        pytest.param({}, {}, {}, {"every": 3}, id="every"),
    ],
)
def test_equals_the_loop_written_by_hand(of_module, of_trainer, of_loop, settings, streaming) -> None:
    settings = LEARN | settings | {"streaming": streaming}
    ours, theirs = Module(**of_module), Module(**of_module)
    callback = MetaLRCallback(**settings, meta_loader=META)
    fit(ours, callback, **of_trainer)
    lrs = by_hand(theirs, meta=META, **of_loop, **settings)
    assert list(lrs) == ["net.0", "net.4", "net.6"]
    assert callback.lrs == lrs
    assert_equal(ours, theirs)
    assert len(set(lrs.values())) == 3  # otherwise equality proves nothing


class Busy(Module):
    """Keeps and logs all that a module may."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[float] = []
        self.calls = 0
        self.mean = MeanMetric()
        self.metrics = MetricCollection([SumMetric(), MeanMetric()])
        self.gradients: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss.item())
        self.calls += 1
        self.mean(loss.detach())
        self.metrics.update(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log_dict({"other": loss + 1}, on_epoch=True, batch_size=4)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.gradients.append(sum(p.grad.abs().sum().item() for p in self.parameters()))

    def on_train_end(self) -> None:
        self.total = self.metrics.compute()


class Augmented(Dataset):
    """Draws from the global generator."""

    def __init__(self) -> None:
        self.samples = samples()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.samples[index]
        return x + 0.1 * torch.randn(4), y


@pytest.mark.parametrize(
    "settings", [{}, {"streaming": True}, {"meta_loader": META}], ids=["default", "streaming", "list"]
)
def test_a_hyper_lr_of_0_changes_nothing(settings: dict[str, Any]) -> None:
    with_it, without = Busy(), Busy()
    runs = []
    for module, added in ((with_it, [MetaLRCallback(hyper_lr=0.0, **settings)]), (without, [])):
        loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
        run = fit(module, *added, loader=loader)
        runs.append((run.callback_metrics, torch.get_rng_state()))
    assert_equal(with_it, without)
    assert with_it.seen == without.seen
    assert with_it.calls == without.calls == 10
    assert with_it.gradients == without.gradients
    assert with_it.total == without.total
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert set(vars(with_it)) == set(vars(without))


def test_by_default_the_meta_batches_are_the_training_data_in_an_order_of_their_own() -> None:
    class Watched(Module):
        def meta_step(self, batch: Batch, batch_idx: int) -> Tensor:
            seen.append((batch_idx, batch[0]))
            return self.training_step(batch, batch_idx)

    seen: list[tuple[int, Tensor]] = []
    fit(Watched(), MetaLRCallback(**LEARN))
    assert [number for number, _ in seen] == list(range(10))
    for passes in (seen[:5], seen[5:]):
        rows = torch.cat([x for _, x in passes])
        torch.testing.assert_close(rows.sort(0).values, samples().tensors[0].sort(0).values)
        assert not torch.equal(rows, samples().tensors[0])
    assert not torch.equal(seen[0][1], seen[5][1])


def test_a_datamodules_meta_dataloader_comes_before_the_training_data() -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(samples(), batch_size=4)

        def meta_dataloader(self) -> Any:
            return META

    ours, theirs = Module(), Module()
    callback = MetaLRCallback(**LEARN)
    fit(ours, callback, loader=Data())
    assert callback.lrs == by_hand(theirs, meta=META, **LEARN)
    assert_equal(ours, theirs)


class Adversarial(pl.LightningModule):
    """Two networks, two optimizers, optimisation by hand, and gradients that wait while the other one steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        self.two = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

    def configure_optimizers(self) -> Any:
        return [
            SGD([{"params": net[number].parameters(), "layer": f"{name}.{number}"} for number in (0, 2)], lr=0.1)
            for name, net in self.named_children()
        ]

    def training_step(self, batch: Batch) -> None:
        first, second = self.optimizers()
        loss = self.two(self.one(batch[0])).square().mean()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.step()


class AdversarialWithStep(Adversarial):
    def meta_step(self, batch: Batch) -> Tensor:
        return self.two(self.one(batch[0])).square().mean()


def adversarial(kind: type[Adversarial] = AdversarialWithStep) -> Adversarial:
    torch.manual_seed(5)
    return kind()


@pytest.mark.parametrize("index", [0, 1])
def test_optimisation_by_hand_and_one_of_several_optimizers(index: int) -> None:
    ours, theirs = adversarial(), adversarial()
    callback = MetaLRCallback(**LEARN, meta_loader=META, optimizer=index)
    run = fit(ours, callback)
    lrs = adversarial_by_hand(theirs, index)
    assert callback.lrs == lrs
    assert_equal(ours, theirs)
    assert all(rate != 0.1 for rate in lrs.values())
    assert run.global_step == 20


def adversarial_by_hand(module: Adversarial, index: int) -> dict[str, float]:
    optimizers = module.configure_optimizers()
    metalr = layertune.MetaLR(optimizers[index], **LEARN)
    for step in range(10):
        module.zero_grad()
        module.two(module.one(batches()[step % 5][0])).square().mean().backward()
        for number, optimizer in enumerate(optimizers):
            optimizer.step()
            if number == index:
                before = [p.grad for p in module.parameters()]
                module.zero_grad()
                module.two(module.one(META[step % 3][0])).square().mean().backward()
                metalr.adapt()
                for parameter, grad in zip(module.parameters(), before, strict=True):
                    parameter.grad = grad
    return metalr.lrs


def test_a_callback_for_each_of_two_optimizers() -> None:
    one, two = (MetaLRCallback(**LEARN, meta_loader=META, optimizer=index) for index in (0, 1))
    fit(adversarial(), one, two)
    assert len({*one.lrs.values(), *two.lrs.values()}) == 4


def test_streaming_needs_no_step_of_its_own_in_optimisation_by_hand() -> None:
    callback = MetaLRCallback(**LEARN, streaming=True)
    fit(adversarial(Adversarial), callback)
    assert all(rate != 0.1 for rate in callback.lrs.values())


class Scaled(MixedPrecision):
    """Lightning's own scaler, on the CPU, where Lightning does not offer it; in float32, so results stay the same."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4))

    def autocast_context_manager(self) -> Any:
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_gradient_scaler_scales_the_meta_loss_and_is_left_alone(streaming: bool) -> None:
    scales = []
    for settings in ([LEARN | {"meta_loader": META, "streaming": streaming}], []):
        module, plugin = Module(), Scaled()
        added = [MetaLRCallback(**setting) for setting in settings]
        fit(module, *added, plugins=[plugin])
        scales.append(plugin.scaler.state_dict())
        if added:
            plain = Module()
            lrs = by_hand(plain, meta=META, **LEARN, streaming=streaming)
            assert added[0].lrs == pytest.approx(lrs, rel=1e-5)
            torch.testing.assert_close(weights(module), weights(plain), rtol=1e-5, atol=1e-6)
    assert scales[0] == scales[1]


def test_a_step_that_the_scaler_skips_is_not_learned_from() -> None:
    class Overflowing(Module):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx in (0, 3) else 1.0)

        def meta_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx)

    callback = MetaLRCallback(**LEARN, meta_loader=META)
    fit(Overflowing(), callback, plugins=[Scaled()])
    assert callback.profile is not None
    assert callback.profile.steps == (1, 2, 3, 4, 5, 6)


def test_moving_averages_hold_the_corrected_weights() -> None:
    def average(averaged: Tensor, now: Tensor, _: Any) -> Tensor:
        return averaged.lerp(now, 0.5)

    ours, theirs = Module(), Module()
    kept = [p.detach().clone() for p in theirs.parameters()]
    first = [True]

    def update(module: nn.Module) -> None:
        for held, now in zip(kept, module.parameters(), strict=True):
            held.copy_(now.detach() if first[0] else held.lerp(now.detach(), 0.5))
        first[0] = False

    by_hand(theirs, meta=META, after=update, **LEARN)
    fit(ours, MetaLRCallback(**LEARN, meta_loader=META), WeightAveraging(avg_fn=average, use_buffers=False))
    torch.testing.assert_close([p.detach() for p in ours.parameters()], kept)  # swapped in at the end


@pytest.mark.parametrize("streaming", [False, True])
def test_stochastic_weight_averaging_is_as_without_when_nothing_is_learned(streaming: bool) -> None:
    with_it, without = Module(), Module()
    fit(with_it, StochasticWeightAveraging(0.02), MetaLRCallback(hyper_lr=0.0, streaming=streaming), max_epochs=3)
    fit(without, StochasticWeightAveraging(0.02), max_epochs=3)
    assert_equal(with_it, without)


def test_rates_are_logged_when_the_trainer_logs_and_drawn_at_the_end(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, version=0), TensorBoardLogger(tmp_path / "board", version=0)]
    callback = MetaLRCallback(**LEARN, figure=tmp_path / "figures" / "rates.png")
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
def test_after_a_fit_nothing_is_left_but_what_a_checkpoint_needs(streaming: bool, tmp_path: Path) -> None:
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
    quiet = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
    arguments = [f"--trainer.{name}=false" for name in quiet]
    arguments += ["--trainer.callbacks+=layertune_lightning.MetaLRCallback", "--trainer.callbacks.hyper_lr=0.3"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *arguments])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # written by Lightning
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how Lightning calls it
    cli = LightningCLI(CommandLineModule, Data, save_config_callback=None, seed_everything_default=3)
    (callback,) = (found for found in cli.trainer.callbacks if isinstance(found, MetaLRCallback))
    assert callback.settings["hyper_lr"] == 0.3
    assert all(rate != 0.05 for rate in callback.lrs.values())


class CommandLineModule(Module):
    def __init__(self) -> None:
        super().__init__()


class ThawFirst(BaseFinetuning):
    """Adds a param group in the second epoch, as Lightning's own ``BackboneFinetuning`` does."""

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


def test_frozen_layers_stay_and_are_thawed_afterwards() -> None:
    module, callback = Module(), LayerFreezeCallback(BiDirectional(m=2, n=2))
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, callback, loader=DataLoader(samples(), batch_size=4))
    same = [torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    weight = {"net.0": same[0], "net.1": same[2], "net.4": same[4], "net.4 bias": same[5], "net.6": same[6]}
    assert [name for name, stays in weight.items() if stays] == ["net.4", "net.4 bias"]
    assert all(p.requires_grad for p in module.parameters())


def test_frozen_layers_are_thawed_after_an_exception() -> None:
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


def test_every_trainer_gets_a_callback_when_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not any(isinstance(found, MetaLRCallback) for found in trainer().callbacks)
    monkeypatch.setenv(VARIABLE, "hyper_lr=0.3, rule=cosine,streaming=true,every=2")
    (callback,) = (found for found in trainer().callbacks if isinstance(found, MetaLRCallback))
    assert callback.settings | {"hyper_lr": 0.3, "rule": "cosine", "streaming": True, "every": 2} == callback.settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes", "'yes' is not one of them"),
        ("hyper_lr=0.1,speed=3", "'speed=3' is not one of them"),
        ("every=1,every=2", "'every=2' is given twice"),
        ("hyper_lr=fast", "'fast' will not do for hyper_lr"),
        ("streaming=1", "'1' will not do for streaming"),
    ],
)
def test_an_environment_variable_that_cannot_be_read_is_one_clear_error(text, message, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(LayertuneError, match=message):
        callbacks()


class WithoutLoss(Module):
    def meta_step(self, _: Batch) -> None:
        return None


class Detached(Module):
    def meta_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx).detach()


class Iterating(Module):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        return super().training_step(next(dataloader_iter)[0], 0)


class Unknown(Module):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = None


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        pytest.param(Module, {"optimizer": 2}, "names none of the 1 optimizers", id="optimizer"),
        pytest.param(Module, {"optimizer": -1}, "names none of the 1 optimizers", id="negative optimizer"),
        pytest.param(Module, {"rule": "magic"}, "rule must be one of", id="rule"),
        pytest.param(Unknown, {}, "set its example_input_array, or give the callback layers=", id="no layers"),
        pytest.param(Module, {"layers": lambda _: 3}, "gave int", id="layers of another kind"),
        pytest.param(
            Module,
            {"layers": lambda _: map_layers(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4))},
            "no network in Module has just the 2 parameters",
            id="layers of another network",
        ),
        pytest.param(Module, {"meta_loader": []}, "yields no batch in pass 1", id="empty"),
        pytest.param(Module, {"meta_loader": iter(META)}, "yields no batch in pass 2", id="once"),
        pytest.param(Module, {"meta_loader": DataLoader([])}, "length 0", id="empty data"),
        pytest.param(
            Module,
            {"meta_loader": [{"image": torch.zeros(4, 4)}]},
            r"is \{image: Tensor\}, where a training batch is \[Tensor, Tensor\]",
            id="another structure",
        ),
        pytest.param(WithoutLoss, {}, "meta_step of WithoutLoss gave NoneType", id="no loss"),
        pytest.param(Detached, {}, "a tensor without a gradient", id="no gradient"),
        pytest.param(Adversarial, {"optimizer": 1}, "give it a meta_step", id="by hand"),
        pytest.param(Iterating, {}, "takes an iterator", id="iterator"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_what_will_not_do_is_one_clear_error(kind, settings, message) -> None:
    module, callback = kind(), MetaLRCallback(**(LEARN | settings))
    with pytest.raises(LayertuneError, match=message):
        fit(module, callback)
    assert callback.metalr is None
    assert "log" not in vars(module)


def test_a_training_step_that_fails_on_its_own_keeps_its_error() -> None:
    class Failing(Module):
        def meta_step(self, _: Batch) -> Tensor:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fit(Failing(), MetaLRCallback(**LEARN))


def test_training_data_without_indices_asks_for_a_meta_loader() -> None:
    with pytest.raises(LayertuneError, match=r"is a list; give MetaLRCallback\(meta_loader="):
        fit(Module(), MetaLRCallback(**LEARN), loader=batches())


def test_lightning_below_the_minimum_is_answered_with_the_line_that_upgrades(monkeypatch) -> None:
    monkeypatch.setattr(layertune.plugin, "_installed", lambda _: "2.5.0")
    with pytest.raises(MissingPackageError, match=r"pip install --upgrade 'layertune\[lightning\]'"):
        _ = layertune_lightning.MetaLRCallback


def test_a_position_in_the_meta_batches_is_found_again() -> None:
    class Noisy(Augmented):
        def __getitem__(self, index: int) -> Batch:
            return [part.clone() for part in super().__getitem__(index)]

    class Own(DataLoader):
        """Of a class of its own, so it is gone through."""

    for loader in (kind(Noisy(), batch_size=3, shuffle=True) for kind in (DataLoader, Own)):
        state = torch.get_rng_state()
        one = MetaBatches(loader, seed=1)
        drawn = [next(one) for _ in range(17)]
        for number in (0, 1, 6, 7, 8, 16):
            other = MetaBatches(loader, seed=2)
            start = MetaBatches(loader, seed=1)
            for _ in range(number):
                next(start)
            other.go_to(start.position)
            torch.testing.assert_close([next(other) for _ in range(17 - number)], drawn[number:], rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state)


def test_processes_share_the_samples_of_every_pass() -> None:
    shares = [iter(EndlessSampler(7, 3, Share(rank, 2))) for rank in range(2)]
    stream = [next(shares[number % 2]) for number in range(21)]
    assert all(sorted(stream[first : first + 7]) == list(range(7)) for first in (0, 7, 14))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What both ended with, for each kind of run."""
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(lightning_processes.__file__)
    subprocess.run([*launch, script, folder], check=True, timeout=500)
    return {
        kind: [torch.load(folder / f"{kind} {rank}.pt", weights_only=True) for rank in range(2)]
        for kind in lightning_processes.KINDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", lightning_processes.KINDS)
def test_two_processes_learn_the_rates_that_one_learns(kind: str, two_processes: dict[str, Any]) -> None:
    one, two = two_processes[kind]
    assert one["lrs"] == two["lrs"]
    torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)
    # The mean of both processes' gradients is the gradient of a batch twice as large.
    alone = lightning_processes.run(kind, size=8)
    assert one["lrs"] == pytest.approx(alone["lrs"], rel=1e-5)
    torch.testing.assert_close(one["weights"], alone["weights"], rtol=1e-5, atol=1e-6)
    assert alone["seen"] == [number for pair in zip(one["seen"], two["seen"], strict=True) for number in pair]
    assert len(set(one["lrs"].values())) == 3

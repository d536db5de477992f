"""Lightning's MetaLRCallback compared with a plain loop, and with Lightning without it."""

from collections import deque
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection, SumMetric

import layertune.hosts.plugin
from layertune_lightning import MetaLRCallback
from lightning_runs import (
    LEARN,
    META,
    Adversarial,
    AdversarialWithStep,
    Augmented,
    Batch,
    Module,
    adversarial,
    assert_equal,
    batches,
    by_hand,
    fit,
    samples,
    weights,
)


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
def test_it_learns_what_a_plain_loop_learns(of_module, of_trainer, of_loop, settings, streaming) -> None:
    settings = LEARN | settings | {"streaming": streaming}
    ours, theirs = Module(**of_module), Module(**of_module)
    callback = MetaLRCallback(**settings, meta_loader=None if streaming else META)
    fit(ours, callback, **of_trainer)
    lrs = by_hand(theirs, meta=META, **of_loop, **settings)
    assert list(lrs) == ["net.0", "net.4", "net.6"]
    assert callback.lrs == lrs
    assert_equal(ours, theirs)
    assert len(set(lrs.values())) == 3  # otherwise equality proves nothing


class Busy(Module):
    """A module that keeps and logs everything that a module may."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[float] = []
        self.calls = 0
        self.recent: deque[float] = deque(maxlen=3)
        self.history: dict[str, list[float]] = {"loss": []}
        self.mean = MeanMetric()
        self.metrics = MetricCollection([SumMetric(), MeanMetric()])
        self.gradients: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.seen.append(loss.item())
        self.calls += 1
        self.recent.append(loss.item())
        self.history["loss"].append(loss.item())
        self.mean(loss.detach())
        self.metrics.update(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log_dict({"other": loss + 1}, on_epoch=True, batch_size=4)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.gradients.append(sum(p.grad.abs().sum().item() for p in self.parameters()))

    def on_train_end(self) -> None:
        self.total = self.metrics.compute()


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
    assert with_it.recent == without.recent
    assert with_it.history == without.history
    assert with_it.gradients == without.gradients
    assert with_it.total == without.total
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert set(vars(with_it)) == set(vars(without))


def test_by_default_the_meta_batches_are_the_training_data_in_another_order() -> None:
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


def test_an_optimizer_that_is_toggled_learns_alone() -> None:
    class Toggling(AdversarialWithStep):
        def training_step(self, batch: Batch) -> None:
            first, _ = self.optimizers()
            self.toggle_optimizer(first)
            self.manual_backward(self.meta_step(batch))
            first.step()
            first.zero_grad()
            self.untoggle_optimizer(first)

    module, callback = adversarial(Toggling), MetaLRCallback(**LEARN, meta_loader=META)
    before = weights(module.two)
    fit(module, callback)
    torch.testing.assert_close(weights(module.two), before, rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in module.two.parameters())
    assert all(rate != 0.1 for rate in callback.lrs.values())


def test_streaming_needs_no_meta_step_in_optimisation_by_hand() -> None:
    callback = MetaLRCallback(**LEARN, streaming=True)
    fit(adversarial(Adversarial), callback)
    assert all(rate != 0.1 for rate in callback.lrs.values())


class Scaled(MixedPrecision):
    """Lightning's own scaler, on the CPU and in float32, so that results are the same."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4))

    def autocast_context_manager(self) -> Any:
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_gradient_scaler_scales_the_meta_loss_and_does_not_change(streaming: bool) -> None:
    scales = []
    learning = LEARN | ({"streaming": True} if streaming else {"meta_loader": META})
    for settings in ([learning], []):
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
def test_a_hyper_lr_of_0_does_not_change_stochastic_weight_averaging(streaming: bool) -> None:
    with_it, without = Module(), Module()
    fit(with_it, StochasticWeightAveraging(0.02), MetaLRCallback(hyper_lr=0.0, streaming=streaming), max_epochs=3)
    fit(without, StochasticWeightAveraging(0.02), max_epochs=3)
    assert_equal(with_it, without)

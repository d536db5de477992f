"""Auto-RGN, L2-SP, phases and schedule-free optimizers in Lightning, against plain loops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from layertune import (
    L2SP,
    LPFT,
    AutoRGN,
    GradualUnfreezing,
    MetaLR,
    ModelError,
    OptimizerError,
    PolicyError,
    make_optimizer,
    map_layers,
    param_groups,
)
from layertune_lightning import AutoRGNCallback, L2SPCallback, PhasedFreezingCallback, ScheduleFreeCallback
from lightning_runs import SIZE, Batch, batches, samples

Make = Callable[["Plain"], Optimizer]


class Plain(pl.LightningModule):
    """Three linear layers, of which a batch norm follows the first where asked, and an optimizer of the test's own."""

    def __init__(self, make: Make, *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        middle = [nn.BatchNorm1d(6)] if norm else []
        self.net = nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        self.example_input_array = torch.zeros(2, 4)
        self.make = make
        self.validated: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        return mse_loss(self(batch[0]), batch[1])

    def validation_step(self, *_: Any) -> None:
        self.validated.append(self.net[0].weight.detach().clone())

    def configure_optimizers(self) -> Optimizer:
        return self.make(self)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        return param_groups(self, map_layers(self, self.example_input_array), lr=lr)


def fit(
    module: Plain, *callbacks: pl.Callback, epochs: int = 1, resume: Path | None = None, **options: Any
) -> pl.Trainer:
    usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual |= {"enable_checkpointing": False, "limit_val_batches": 0}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **(usual | options))
    trainer.fit(module, loader(), loader(9), ckpt_path=resume, weights_only=False)
    return trainer


def loader(seed: int = 0) -> DataLoader:
    return DataLoader(samples(seed), batch_size=SIZE)


def plain_loop(module: Plain, optimizer: Optimizer, *, before: Callable[[], object] = lambda: None) -> None:
    module.train()
    for batch in batches():
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        before()
        optimizer.step()


def assert_equal(module: nn.Module, other: nn.Module) -> None:
    for (name, one), two in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


def sgd(module: Plain) -> Optimizer:
    return SGD(module.groups(0.05), momentum=0.9)


@pytest.mark.parametrize("name", ["prodigy", "prodigy_split", "ldog", "dadapt_adam"])
def test_optimizers_of_other_packages_train_as_in_a_plain_loop(name: str) -> None:
    def make(module: Plain) -> Optimizer:
        return make_optimizer(name, module.groups(1.0))

    module, other = Plain(make), Plain(make)
    fit(module)
    plain_loop(other, make(other))
    assert_equal(module, other)


def test_auto_rgn_trains_as_in_a_plain_loop_and_is_detached() -> None:
    module, other = Plain(sgd), Plain(sgd)
    callback = AutoRGNCallback(batches=2)
    trainer = fit(module, callback)
    optimizer = sgd(other)
    auto_rgn = AutoRGN(optimizer, batches=2)
    plain_loop(other, optimizer)
    assert_equal(module, other)
    assert callback.auto_rgn is not None
    assert callback.auto_rgn.factors == auto_rgn.factors
    MetaLR(trainer.optimizers[0])


def test_l2_sp_trains_as_in_a_plain_loop() -> None:
    module, other = Plain(sgd), Plain(sgd)
    fit(module, L2SPCallback(alpha=0.3, beta=0.2))
    optimizer = sgd(other)
    penalty = L2SP(other, map_layers(other, other.example_input_array), alpha=0.3, beta=0.2)
    plain_loop(other, optimizer, before=lambda: penalty.add_gradient(optimizer))
    assert_equal(module, other)


class Moved(pl.Callback):
    """Records for each epoch which of the three linear layers moved."""

    def __init__(self) -> None:
        self.epochs: list[list[bool]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.before = [layer.weight.detach().clone() for layer in linear(pl_module)]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        pairs = zip(linear(pl_module), self.before, strict=True)
        self.epochs.append([not torch.equal(layer.weight, before) for layer, before in pairs])


def linear(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def test_phases_follow_the_epochs() -> None:
    module, moved = Plain(sgd), Moved()
    fit(module, PhasedFreezingCallback(GradualUnfreezing()), moved, epochs=4)
    assert moved.epochs == [[False, False, True], [False, True, True], [True] * 3, [True] * 3]
    assert all(parameter.requires_grad for parameter in module.parameters())
    module, moved = Plain(sgd), Moved()
    fit(module, PhasedFreezingCallback("lp_ft", epochs=2), moved, epochs=3)
    assert moved.epochs == [[False, False, True], [False, False, True], [True] * 3]


def test_a_resumed_fit_goes_on_in_its_phase(tmp_path: Path) -> None:
    whole, resumed = Plain(sgd), Plain(sgd)
    fit(whole, PhasedFreezingCallback(GradualUnfreezing()), epochs=3)
    fit(Plain(sgd), PhasedFreezingCallback(GradualUnfreezing()), epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    moved = Moved()
    fit(resumed, PhasedFreezingCallback(GradualUnfreezing()), moved, epochs=3, resume=tmp_path / "two.ckpt")
    assert moved.epochs == [[True] * 3]
    assert_equal(resumed, whole)


def schedule_free(module: Plain) -> Optimizer:
    return make_optimizer("schedulefree_adamw", module.parameters(), lr=0.05)


def test_a_schedule_free_optimizer_is_validated_and_saved_at_its_average(tmp_path: Path) -> None:
    module, other = Plain(schedule_free, norm=True), Plain(schedule_free, norm=True)
    saver = ModelCheckpoint(tmp_path, filename="last")
    callbacks = [ScheduleFreeCallback(loader=loader(1), batches=3), saver]
    fit(module, *callbacks, limit_val_batches=1, enable_checkpointing=True)
    optimizer = schedule_free(other)
    plain_loop(other, optimizer)
    optimizer.eval()
    with torch.no_grad():
        for batch in batches(1)[:3]:
            other(batch[0])
    assert_equal(module, other)
    # The first validation is the sanity check, at the start.
    torch.testing.assert_close(module.validated[-1], other.net[0].weight.detach(), rtol=0, atol=0)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    for name, weight in other.state_dict().items():
        torch.testing.assert_close(saved[name], weight, rtol=0, atol=0)


def test_batch_norms_without_a_loader_get_a_warning() -> None:
    with pytest.warns(UserWarning, match="Plain has batch norms, whose statistics"):
        fit(Plain(schedule_free, norm=True), ScheduleFreeCallback())
    fit(Plain(schedule_free), ScheduleFreeCallback())
    fit(Plain(sgd, norm=True), ScheduleFreeCallback())


def test_mistakes_are_named() -> None:
    with pytest.raises(OptimizerError, match="at least 1, not 0"):
        AutoRGNCallback(batches=0)
    with pytest.raises(OptimizerError, match="names none of the 1 optimizers"):
        fit(Plain(sgd), AutoRGNCallback(optimizer=1))
    with pytest.raises(OptimizerError, match="make up one"):
        fit(Plain(lambda module: SGD(module.parameters(), lr=0.1)), AutoRGNCallback())
    with pytest.raises(OptimizerError, match=r"finite and >= 0, not -1\.0"):
        L2SPCallback(alpha=-1.0)
    with pytest.raises(PolicyError, match="at least 1 epoch, not 0"):
        PhasedFreezingCallback(LPFT(), epochs=0)
    with pytest.raises(OptimizerError, match=r"weight_decay=0\.1"):
        fit(Plain(lambda module: SGD(module.parameters(), lr=0.1, weight_decay=0.1)), L2SPCallback())
    module = Plain(sgd)
    module.example_input_array = None
    with pytest.raises(ModelError, match="give the callback layers="):
        fit(module, L2SPCallback())

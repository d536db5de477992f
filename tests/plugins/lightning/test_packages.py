"""Lightning's two packages, ``pytorch_lightning`` and ``lightning.pytorch``: the same callbacks serve both."""

import importlib
import importlib.metadata
import subprocess
import sys
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.utils.data import DataLoader

import layertune.hosts.plugin
import layertune_lightning.two_packages
from layertune import LastLayer, MissingPackageError
from layertune_lightning import LayerFreezeCallback, MetaLRCallback
from layertune_lightning.environment import VARIABLE
from lightning_runs import LEARN, META, network, samples, set_command_line, weights

PACKAGES = [pytorch_lightning, lightning.pytorch]
each_package = pytest.mark.parametrize("package", PACKAGES, ids=[package.__name__ for package in PACKAGES])
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


def module_of(package: ModuleType) -> type[Any]:
    """Make a user's module from the classes of one package."""

    class OfPackage(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.example_input_array = torch.zeros(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
            loss = mse_loss(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = SGD([p for p in self.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)]

    return OfPackage


def run(package: ModuleType, *callbacks: Any, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(3)
    module = module_of(package)()
    trainer = package.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, log_every_n_steps=1, callbacks=list(callbacks), **QUIET, **options
    )
    trainer.fit(module, DataLoader(samples(), batch_size=4, shuffle=True))
    return module, trainer


@pytest.mark.parametrize("settings", [{}, {"streaming": True}, {"meta_loader": META, "every": 3}], ids=str)
def test_both_learn_the_same_rates_bit_for_bit(settings: dict[str, Any]) -> None:
    learned = []
    for package in PACKAGES:
        callback = MetaLRCallback(**LEARN, **settings)
        module, _ = run(package, callback, gradient_clip_val=0.5, precision="bf16-mixed")
        learned.append((callback.lrs, weights(module)))
    assert learned[0][0] == learned[1][0]
    assert len(set(learned[0][0].values())) == 3
    torch.testing.assert_close(learned[0][1], learned[1][1], rtol=0, atol=0)


@each_package
def test_frozen_layers_stay(package: ModuleType) -> None:
    before = network()
    module, _ = run(package, LayerFreezeCallback(LastLayer()))
    same = [torch.equal(a, b) for a, b in zip(before.parameters(), module.net.parameters(), strict=True)]
    assert same == [True] * 6 + [False] * 2


@each_package
def test_a_callback_is_an_instance_of_each_packages_class(package: ModuleType) -> None:
    assert isinstance(MetaLRCallback(), package.Callback)
    assert isinstance(LayerFreezeCallback(LastLayer()), package.Callback)
    callback = MetaLRCallback()
    assert callback in package.Trainer(accelerator="cpu", callbacks=callback, **QUIET).callbacks


@each_package
def test_the_trainers_of_each_package_ask_the_factory(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, expected in (("", []), ("hyper_lr=0.3", [0.3])):
        monkeypatch.setenv(VARIABLE, setting)
        callbacks = package.Trainer(accelerator="cpu", **QUIET).callbacks
        found = [callback.settings.hyper_lr for callback in callbacks if isinstance(callback, MetaLRCallback)]
        assert found == expected


def test_the_command_line_of_the_unified_package_takes_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Data(lightning.pytorch.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(samples(), batch_size=4)

    set_command_line(monkeypatch)
    cli = importlib.import_module("lightning.pytorch.cli").LightningCLI(
        module_of(lightning.pytorch), Data, save_config_callback=None, seed_everything_default=3
    )
    (callback,) = (found for found in cli.trainer.callbacks if isinstance(found, MetaLRCallback))
    assert callback.settings.hyper_lr == 0.3
    assert all(rate != 0.05 for rate in callback.lrs.values())


def test_an_old_unified_package_gives_the_line_that_upgrades_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layertune.hosts.plugin, "_installed", lambda _: "2.6.0")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.5.1")
    with pytest.raises(MissingPackageError, match=r"needs lightning>=2.6 .* 2.5.1 is: pip install --upgrade lightning"):
        layertune_lightning.two_packages._classes()


def test_without_the_unified_package_the_other_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(layertune.hosts.plugin, "_installed", lambda _: "2.6.0")
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert layertune_lightning.two_packages._classes() == [pytorch_lightning.Callback]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["pytorch_lightning", "lightning.pytorch"])
def test_the_notices_stay_with_the_package_that_the_user_imported(first: str) -> None:
    code = (
        f"import {first}; from layertune_lightning import MetaLRCallback; "
        "from lightning_utilities.core import rank_zero; print(rank_zero.log.name)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == f"{first}.utilities.rank_zero"

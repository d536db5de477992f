"""Lightning modules, loaders and fits that several tests share, and the plain loop that they are compared with."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset, TensorDataset

from layertune import MetaLR, map_layers, param_groups
from plain_loop import adapt_if_due

Batch = Sequence[Tensor]
SIZE, STEPS, EPOCHS = 4, 5, 2


def samples(seed: int = 0, size: int = SIZE * STEPS) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(*(torch.randn(size, width, generator=generator) for width in (4, 2)))


def batches(seed: int = 0, size: int = SIZE * STEPS) -> list[Batch]:
    """Return batches of the samples, in order."""
    return list(DataLoader(samples(seed, size), batch_size=SIZE))


def network() -> nn.Sequential:
    """Make a network with dropout and running statistics, which a meta pass must not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2)
        return nn.Sequential(*first, nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


class Module(pl.LightningModule):
    """A module as a user writes one: with one param group, or with one per layer if ``groups`` is true."""

    def __init__(
        self, make: Callable[..., Optimizer] = SGD, schedule: str = "", groups: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.net = network()
        self.example_input_array = torch.zeros(2, 4)
        self._make, self._schedule, self._groups = make, schedule, groups
        self._options = options or {"lr": 0.05, "momentum": 0.9}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        loss = mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=SIZE)
        return loss

    def configure_optimizers(self) -> Any:
        layers = self.parameters()
        if self._groups:
            layers = param_groups(self, map_layers(self, self.example_input_array), lr=self._options["lr"])
        optimizer = self._make(layers, **self._options)
        if not self._schedule:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self._schedule}}


class Resumable(DataLoader):
    """A loader that can go on within a pass, as Lightning requires for a resume in the middle of an epoch."""

    drawn = 0

    def __iter__(self) -> Iterator[Any]:
        first, self.drawn = self.drawn % len(self), 0
        for number, batch in enumerate(super().__iter__()):
            if number >= first:
                self.drawn = number + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """Make a Trainer on the CPU that prints little."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    # As many logs as steps, so that Lightning does not warn.
    settings = quiet | {"max_epochs": EPOCHS, "log_every_n_steps": 1, "devices": 1} | options
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **settings)


def fit(
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    loader: Any = None,
    seed: int = 3,
    ckpt_path: Any = None,
    **options: Any,
) -> pl.Trainer:
    """Train on the batches in order, from a fixed random state."""
    torch.manual_seed(seed)
    run = trainer(*callbacks, **options)
    run.fit(module, DataLoader(samples(), batch_size=SIZE) if loader is None else loader, ckpt_path=ckpt_path)
    return run


def by_hand(
    module: Module,
    *,
    meta: Sequence[Batch] = (),
    accumulate: int = 1,
    clip: Callable[[list[Tensor]], Any] = lambda _: None,
    precision: Callable[[], Any] = nullcontext,
    after: Callable[[nn.Module], Any] = lambda _: None,
    seed: int = 3,
    **settings: Any,
) -> dict[str, float]:
    """Train in a plain loop with MetaLR, and return the learned rates."""
    torch.manual_seed(seed)
    made = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    names = {"net.0": "net.1", "net.4": "", "net.6": ""}
    layers = {
        first: [p for n, p in module.named_parameters() if n.rpartition(".")[0] in (first, second)]
        for first, second in names.items()
    }
    metalr = MetaLR(optimizer, **settings, layers=None if module._groups else layers)
    module.train()
    meta_batches = cycle(meta)

    def loss_of(batch: Batch) -> Tensor:
        with precision():
            return mse_loss(module(batch[0]), batch[1])

    for _ in range(EPOCHS):
        for number, batch in enumerate(batches()):
            if number % accumulate == 0:
                optimizer.zero_grad()
            (loss_of(batch) / accumulate).backward()
            if (number + 1) % accumulate and number + 1 < STEPS:
                continue
            clip(list(module.parameters()))
            optimizer.step()
            adapt_if_due(metalr, module, meta_batches, loss_of)
            if module._schedule == "step":
                made["lr_scheduler"]["scheduler"].step()
            after(module)
        if module._schedule == "epoch":
            made["lr_scheduler"]["scheduler"].step()
    return metalr.lrs


def weights(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.state_dict().values()]


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """Compare all parameters and buffers bit for bit."""
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


class Augmented(Dataset):
    """A dataset whose samples draw from the global generator."""

    def __init__(self) -> None:
        self.samples = samples()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.samples[index]
        return x + 0.1 * torch.randn(4), y


class Adversarial(pl.LightningModule):
    """Two networks with an optimizer each, optimised by hand; the gradients of one wait while the other steps."""

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


def set_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the command line of a ``LightningCLI`` that trains one epoch with a ``MetaLRCallback``."""
    quiet = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
    arguments = [f"--trainer.{name}=false" for name in quiet]
    arguments += ["--trainer.callbacks+=layertune_lightning.MetaLRCallback", "--trainer.callbacks.hyper_lr=0.3"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *arguments])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # Lightning writes them
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about how Lightning calls it


LEARN: dict[str, Any] = {"hyper_lr": 0.3, "rule": "proportional"}
META = batches(seed=1, size=12)

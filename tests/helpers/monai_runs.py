"""MONAI engines and data that several tests share, and the plain loop that these are compared with."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from layertune import MetaLR
from layertune_monai import MetaLRHandler
from plain_loop import adapt_if_due

SIZE, STEPS = 2, 4
LEARN: dict[str, Any] = {"hyper_lr": 0.3, "rule": "proportional"}
LAYERS = ("0", "4", "6")

Batch = dict[str, Tensor]


def items(seed: int = 0, size: int = SIZE * STEPS) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 1, 8, 8, generator=generator)
    return [{"image": image, "label": (image[0] > 0).long()} for image in images]


def batches(seed: int = 0, size: int = SIZE * STEPS) -> list[Batch]:
    """Return batches of the items in order."""
    all_items = items(seed, size)
    return [
        {key: torch.stack([item[key] for item in all_items[first : first + SIZE]]) for key in ("image", "label")}
        for first in range(0, size, SIZE)
    ]


META = batches(seed=1, size=6)


def network(dropout: float = 0.2) -> nn.Sequential:
    """Build a network with dropout and running statistics, which a meta pass must not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout)
        return nn.Sequential(*first, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def sgd(net: nn.Module) -> SGD:
    """Return an optimizer with one group, like those of most bundles."""
    return SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def augmented() -> DataLoader:
    """Return a shuffled loader with random transforms, which have generators of their own."""
    keys = ["image"]
    transform = Compose([RandFlipd(keys, prob=0.5), RandGaussianNoised(keys, prob=1.0, std=0.3)])
    return DataLoader(Dataset(items(), transform), batch_size=SIZE, shuffle=True)


def train(
    net: nn.Module,
    optimizer: Optimizer,
    *handlers: Any,
    loader: Any = None,
    epochs: int = 2,
    seed: int = 3,
    kind: type[SupervisedTrainer] = SupervisedTrainer,
    **options: Any,
) -> SupervisedTrainer:
    """Run an engine from a fixed random state."""
    torch.manual_seed(seed)
    loader = batches() if loader is None else loader() if callable(loader) else loader
    settings = {"loss_function": cross_entropy, "decollate": False, "train_handlers": list(handlers)} | options
    engine = kind(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=net,
        optimizer=optimizer,
        **settings,
    )
    engine.run()
    return engine


def by_hand(
    net: nn.Module,
    optimizer: Optimizer,
    *,
    meta: Sequence[Batch] = META,
    accumulate: int = 1,
    epochs: int = 2,
    seed: int = 3,
    **settings: Any,
) -> dict[str, float]:
    """Train in a plain loop with MetaLR, and return the learned rates."""
    torch.manual_seed(seed)
    places = {"0": "01", "4": "4", "6": "6"}
    layers = {
        layer: [p for name, p in net.named_parameters() if name[0] in numbers] for layer, numbers in places.items()
    }
    metalr = MetaLR(optimizer, **settings, layers=layers)
    net.train()
    meta_batches = cycle(meta)

    def loss_of(batch: Batch) -> Tensor:
        return cross_entropy(net(batch["image"]), batch["label"])

    for _ in range(epochs):
        for number, batch in enumerate(batches()):
            if number % accumulate == 0:
                optimizer.zero_grad()
            (loss_of(batch) / accumulate).backward()
            if (number + 1) % accumulate and number + 1 < STEPS:
                continue
            optimizer.step()
            adapt_if_due(metalr, net, meta_batches, loss_of)
    return metalr.lrs


def weights(net: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in net.state_dict().values()]


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """Compare the weights and buffers of two networks bit for bit."""
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


def saved_run(
    folder: Path,
    *,
    handler: dict[str, Any] | None,
    first: int = 0,
    last: int = 4,
    loader: Any = None,
) -> tuple[nn.Module, Optimizer, MetaLRHandler | None]:
    """Train to an epoch with MONAI's own checkpoints, from the one in the folder if ``first`` is above 0.

    Returns:
        Network, optimizer and handler.
    """
    net = network(dropout=0.0)  # MONAI does not save the random state that dropout draws from
    optimizer = sgd(net)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    learner = None if handler is None else MetaLRHandler(optimizer, **handler)
    state: dict[str, Any] = {"network": net, "optimizer": optimizer, "schedule": schedule}
    if learner is not None:
        state["metalr"] = learner
    handlers: list[Any] = [] if learner is None else [learner]
    from monai.handlers import LrScheduleHandler

    handlers.append(LrScheduleHandler(schedule, print_lr=False))
    saver = CheckpointSaver(str(folder), state, save_final=True, final_filename="last.pt")
    handlers.append(saver)

    class Engine(SupervisedTrainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            saver.save_dict["trainer"] = self
            if first:
                state["trainer"] = self
                CheckpointLoader(str(folder / "last.pt"), state, map_location="cpu").attach(self)

    train(net, optimizer, *handlers, loader=loader, epochs=last, kind=Engine)
    return net, optimizer, learner

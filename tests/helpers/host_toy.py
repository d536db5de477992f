"""One toy network with its data, and the rates that MetaLR learns on it in a plain loop: every host learns the same."""

from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from layertune import MetaLR, MetaLRSettings, map_layers
from plain_loop import adapt_if_due

__all__ = ["EXAMPLE", "META", "RATE", "TRAINING", "loss_of", "rates_by_hand", "sgd", "toy_network", "train_steps"]

RATE, MOMENTUM = 0.05, 0.9
SIDE, CLASSES = 16, 3
EXAMPLE = torch.zeros(2, 1, SIDE, SIDE)

Batch = tuple[Tensor, Tensor]


def make_batches(seed: int, number: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(EXAMPLE.shape, generator=generator) for _ in range(number)]
    return [(image, image[:, 0].clamp(-1, 1).add(1).round().long()) for image in images]


TRAINING, META = make_batches(0, 6), make_batches(1, 4)


def toy_network() -> nn.Sequential:
    """Make a small network that labels each pixel, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        body = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        network = nn.Sequential(*body, nn.Conv2d(4, CLASSES, 1))
    network.pretrained_cfg = {"input_size": tuple(EXAMPLE.shape[1:])}  # how timm's models name their input size
    return network


def sgd(network: nn.Module) -> SGD:
    return SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target)


def train_steps(network: nn.Module, optimizer: Optimizer, metalr: MetaLR) -> list[float]:
    """Train in a plain loop, and return the rates from the first to the last layer."""
    network.train()
    meta = cycle(META)
    for image, target in TRAINING:
        optimizer.zero_grad()
        loss_of(network(image), target).backward()
        optimizer.step()
        adapt_if_due(metalr, network, meta, lambda batch: loss_of(network(batch[0]), batch[1]))
    return list(metalr.lrs.values())


def rates_by_hand(preset: str, **settings: Any) -> list[float]:
    """Return the rates that a loop with ``MetaLR`` itself learns."""
    network = toy_network()
    optimizer = sgd(network)
    layers = map_layers(network, EXAMPLE).parameters_of(network)
    record = MetaLRSettings.given(preset=preset, **settings)
    return train_steps(network, optimizer, MetaLR(optimizer, settings=record, layers=layers))

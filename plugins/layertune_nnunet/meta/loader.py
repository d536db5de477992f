"""nnU-Net's loader for meta batches: a batch depends on its number only."""

import random
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from layertune.restoring import kept_random_state

__all__ = ["MetaLoader", "start_workers"]


class MetaLoader(nnUNetDataLoader):
    """nnU-Net's loader with random numbers of its own.

    Batch number i depends on the seed and on i only. So it is the same however many workers load batches, whatever else
    draws random numbers, and wherever a continued training begins. The generators of the process are put back.

    Args:
        *args: The positional arguments of ``nnUNetDataLoader``.
        seed: Whole numbers that fix the batches. Each process of a distributed training has its own.
        first: The number of the first batch, from 0.
        workers: How many copies of this loader give batches in turn.
        **options: Keyword arguments of ``nnUNetDataLoader``.
    """

    def __init__(self, *args: Any, seed: tuple[int, ...], first: int, workers: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seed = seed
        self.first = first
        self.workers = workers

    def generate_train_batch(self) -> dict[str, Any]:
        """Return the next batch of this worker."""
        number = self.first + self.thread_id
        self.first += self.workers
        with kept_random_state():
            for_numpy, for_torch, for_python = np.random.SeedSequence((*self.seed, number)).generate_state(3).tolist()
            np.random.seed(for_numpy)  # noqa: NPY002 - nnU-Net draws from it
            torch.default_generator.manual_seed(for_torch)
            random.seed(for_python)
            batch: dict[str, Any] = super().generate_train_batch()
        return batch


def start_workers(loader: MetaLoader, *, pin_memory: bool) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Return the batches in the order of their numbers.

    Args:
        loader: The loader. With ``loader.workers`` = 0 this process loads the batches, otherwise that many workers do.
        pin_memory: Whether workers pin the memory of batches, for a GPU.
    """
    if not loader.workers:
        loader.workers = 1
        return SingleThreadedAugmenter(loader, None)
    batches = MultiThreadedAugmenter(loader, None, loader.workers, pin_memory=pin_memory, wait_time=0.002)
    batches._start()
    return batches

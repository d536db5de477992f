"""Meta batches in nnU-Net's own loader, each a function of its number."""

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
    """nnU-Net's loader, with random numbers of its own.

    Batch number i depends on the seed and on i alone, whatever else draws random numbers, however many workers there
    are, and wherever a run begins. The generators of the process end as they began.

    Args:
        *args: as ``nnUNetDataLoader`` takes them.
        seed: fixes the batches; one for each process of a distributed training.
        first: number of the first batch.
        workers: how many copies of this loader give batches in turn.
        **options: as ``nnUNetDataLoader`` takes them.
    """

    def __init__(self, *args: Any, seed: tuple[int, ...], first: int, workers: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seed = seed
        self.first = first
        self.workers = workers

    def generate_train_batch(self) -> dict[str, Any]:
        """The next of this worker's batches."""
        number = self.first + self.thread_id
        self.first += self.workers
        with kept_random_state():
            for_numpy, for_torch, for_python = np.random.SeedSequence((*self.seed, number)).generate_state(3).tolist()
            np.random.seed(for_numpy)  # noqa: NPY002 - what nnU-Net draws from
            torch.default_generator.manual_seed(for_torch)
            random.seed(for_python)
            batch: dict[str, Any] = super().generate_train_batch()
        return batch


def start_workers(loader: MetaLoader, *, pin_memory: bool) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Batches in the order of their numbers: from worker processes, or with 0 workers from this one."""
    if not loader.workers:
        loader.workers = 1
        return SingleThreadedAugmenter(loader, None)
    batches = MultiThreadedAugmenter(loader, None, loader.workers, pin_memory=pin_memory, wait_time=0.002)
    batches._start()
    return batches

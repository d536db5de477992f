"""A handler that makes the random numbers of an epoch depend on the epoch alone."""

from typing import Any

import torch.distributed as dist
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.utils import MAX_SEED, set_determinism

__all__ = ["EpochSeeds"]


class EpochSeeds:
    """Seed the order of the cases, their augmentation and the network's dropout at the start of each epoch.

    A run that resumes at the start of an epoch then sees the batches that an uninterrupted run would have seen. The
    processes of one run get different seeds, so they augment differently.

    Args:
        seed: The seed of the run.
        dataset: The training data. Its random transforms have random number generators of their own.

    Example:
        >>> from monai.data import Dataset
        >>> EpochSeeds(0, Dataset([1, 2])).seed_of(epoch=1)
        100003
    """

    def __init__(self, seed: int, dataset: Any) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Any) -> None:
        """Attach to a trainer.

        Args:
            engine: The trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def seed_of(self, epoch: int) -> int:
        """Return the seed of an epoch in this process.

        Args:
            epoch: The number of the epoch, from 1.
        """
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        # The factor is prime and large, so that no two pairs of an epoch and a process get the same seed in practice.
        return (self.seed + 100003 * epoch + rank) % MAX_SEED

    def __call__(self, engine: Any) -> None:
        """Seed all generators for the epoch of the engine.

        Args:
            engine: The trainer.
        """
        seed = self.seed_of(engine.state.epoch)
        set_determinism(seed=seed)
        set_rnd(self.dataset, seed)

"""A handler that makes an epoch's random numbers a function of the epoch alone."""

from typing import Any

import torch.distributed as dist
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.utils import MAX_SEED, set_determinism

__all__ = ["EpochSeeds"]


class EpochSeeds:
    """Seed the order of the cases, their augmentation and the network's dropout anew at each epoch.

    So a run that is resumed at the start of an epoch sees the very batches that it would have seen, and the processes
    of one run augment differently.

    Args:
        seed: of the run.
        dataset: the training data, whose random transforms have generators of their own.

    Example:
        >>> from monai.data import Dataset
        >>> EpochSeeds(0, Dataset([1, 2])).seed_of(epoch=1)
        100003
    """

    def __init__(self, seed: int, dataset: Any) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Any) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def seed_of(self, epoch: int) -> int:
        """The seed of an epoch in this process."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        # A prime for the epoch, so that the seeds of few processes and many epochs do not meet.
        return (self.seed + 100003 * epoch + rank) % MAX_SEED

    def __call__(self, engine: Any) -> None:
        """Seed."""
        seed = self.seed_of(engine.state.epoch)
        set_determinism(seed=seed)
        set_rnd(self.dataset, seed)

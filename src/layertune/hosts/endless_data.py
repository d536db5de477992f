"""Draw from a dataset without end; a seed and the place in the stream fix order and random numbers."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from layertune.errors import MetaBatchError
from layertune.restoring import seed_generators

__all__ = ["ALONE", "EndlessSampler", "Keep", "Place", "PlacedData", "Share", "mixed", "over_same_data"]

Keep = Callable[[int], AbstractContextManager[Any]]
"""A function from a seed to a context manager that sets random state beside the global generators inside a block."""


class Share(NamedTuple):
    """One of several processes that share the data."""

    rank: int = 0
    world: int = 1


ALONE = Share()


class Place(NamedTuple):
    """A place in the stream of samples."""

    seed: int
    """Seed of the sample's random numbers, different at each place."""
    sample: int
    """Index of the sample."""


class EndlessSampler(Sampler[Place]):
    """Go over the data again and again, each time in a new order; every process takes its share.

    Place j depends only on the seed and on j, so a position in the stream is one number.

    Args:
        size: The number of samples, at least 1.
        seed: Seed of the order, the same in all processes.
        share: Which of several processes this is.
        shuffle: Whether the order is random.

    Example:
        >>> from itertools import islice
        >>> one, two = (EndlessSampler(3, 0, Share(rank, 2)) for rank in range(2))
        >>> sorted(place.sample for place in [*islice(one, 3), *islice(two, 3)])
        [0, 0, 1, 1, 2, 2]
    """

    def __init__(self, size: int, seed: int, share: Share, *, shuffle: bool = True) -> None:
        self.size = size
        self.seed = seed
        self.share = share
        self.shuffle = shuffle
        self.first = 0

    def __iter__(self) -> Iterator[Place]:
        order, shuffled_pass = list(range(self.size)), -1
        for index in count(self.first):
            position = index * self.share.world + self.share.rank
            number, place = divmod(position, self.size)
            if self.shuffle and number != shuffled_pass:
                generator = torch.Generator().manual_seed(mixed(self.seed, number))
                order, shuffled_pass = torch.randperm(self.size, generator=generator).tolist(), number
            yield Place(mixed(self.seed, "sample", position), order[place])


class PlacedData(Dataset[Any]):
    """Load the samples of a dataset with random numbers that their places in the stream fix.

    A worker process draws from generators that start with it. Without this class, a stream that starts again in its
    middle would go on with other random numbers, and so would a stream with another number of workers.

    Args:
        data: A dataset with indices.

    Attributes:
        keep: A function from a seed to a ``with`` block, in which random generators beside the global ones start from
            this seed, and after which they are restored. By default there are none.

    Example:
        >>> class Noise(Dataset):
        ...     def __getitem__(self, index): return random.random()
        >>> data = PlacedData(Noise())
        >>> data[Place(seed=5, sample=0)] == data[Place(seed=5, sample=0)]
        True
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.keep: Keep = nullcontext

    def __getitem__(self, place: Place) -> Any:
        seed_generators(place.seed, ())
        with self.keep(place.seed):
            return self.data[place.sample]


class _OwnData:
    """Show a worker the user's dataset, and call the user's ``worker_init_fn``."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self.own = own

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.data)  # torch's WorkerInfo refuses a plain assignment
        if self.own is not None:
            self.own(worker)


def over_same_data(loader: Any, seed: int, share: Share, *, shuffle: bool = True) -> DataLoader[Any]:
    """Make a loader over the data of another one, with its batch size, collation and workers, in another order.

    Args:
        loader: A ``DataLoader`` over data with indices. It is not changed.
        seed: Seed of the order, the same in all processes.
        share: Which of several processes this is.
        shuffle: Whether the order is random.

    Raises:
        MetaBatchError: The loader is something else, or its data is empty.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise MetaBatchError(
            "by default the meta batches come from the training data, which must then be one torch DataLoader over a "
            f"dataset with indices, but is a {type(getattr(loader, 'dataset', loader)).__name__}; give a meta_loader"
        )
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if loader.batch_sampler is not None and not isinstance(size, int):
        raise MetaBatchError(f"{type(loader.batch_sampler).__name__} has no batch_size; give a meta_loader")
    samples: Any = loader.dataset
    if len(samples) == 0:
        raise MetaBatchError("the data for the meta batches is empty: it has length 0; give a loader with data")
    return DataLoader(
        PlacedData(samples),
        batch_size=size,
        sampler=EndlessSampler(len(samples), seed, share, shuffle=shuffle),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=_OwnData(loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def mixed(*parts: int | str) -> int:
    """Return a seed of 63 bits that depends on all parts."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)  # noqa: S311 - seeds, not secrets

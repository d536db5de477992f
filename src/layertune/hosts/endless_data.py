"""A dataset without end: in an order, with random numbers of each sample, that a seed and the place fix."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from layertune.errors import MetaBatchError

__all__ = ["ALONE", "EndlessSampler", "Keep", "Place", "PlacedData", "Share", "mixed", "over_same_data", "seed_all"]

Keep = Callable[[int], AbstractContextManager[Any]]
"""Sets random state beside the global generators from a seed, for the length of a block."""


class Share(NamedTuple):
    """Which of several processes this is."""

    rank: int = 0
    world: int = 1


ALONE = Share()


class Place(NamedTuple):
    """A place in the stream."""

    seed: int
    """Of the sample's random numbers, another at every place."""
    sample: int
    """Its index."""


class EndlessSampler(Sampler[Place]):
    """One pass over the data after the other, a new order each; every process takes its share.

    Place j is a function of the seed and of j alone, so a position in the stream is one number.

    Args:
        size: how many samples there are.
        seed: fixes the order.
        share: which of several processes this is.
        shuffle: whether the order is random.

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
        order, of_pass = list(range(self.size)), -1
        for index in count(self.first):
            position = index * self.share.world + self.share.rank
            number, place = divmod(position, self.size)
            if self.shuffle and number != of_pass:
                generator = torch.Generator().manual_seed(mixed(self.seed, number))
                order, of_pass = torch.randperm(self.size, generator=generator).tolist(), number
            yield Place(mixed(self.seed, "sample", position), order[place])


class PlacedData(Dataset[Any]):
    """The samples of a dataset, whose random numbers are set by their places in the stream.

    A worker process draws from generators that start with it, so a stream that starts again in its middle would go on
    with other random numbers, and another number of workers would give others too.

    Args:
        data: with indices.

    Attributes:
        keep: for random state beside the global generators.

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
        seed_all(place.seed)
        with self.keep(place.seed):
            return self.data[place.sample]


class _OwnData:
    """Let what a user runs in a worker, or asks there, see the user's dataset."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self.own = own

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.data)  # it takes no plain assignment
        if self.own is not None:
            self.own(worker)


def over_same_data(loader: Any, seed: int, share: Share, *, shuffle: bool = True) -> DataLoader[Any]:
    """A loader over the data of another, with its batch size, collation and workers, and an order of its own.

    Args:
        loader: a ``DataLoader`` over data that can be indexed. It is only looked at.
        seed: fixes the order.
        share: which of several processes this is.
        shuffle: whether the order is random.

    Raises:
        MetaBatchError: it is something else, or its data is empty.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise MetaBatchError(
            "by default the meta batches come from the training data, which must then be one torch DataLoader over a "
            f"dataset with indices, and is a {type(getattr(loader, 'dataset', loader)).__name__}; give a meta_loader"
        )
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if loader.batch_sampler is not None and not isinstance(size, int):
        raise MetaBatchError(f"{type(loader.batch_sampler).__name__} does not tell its batch size; give a meta_loader")
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


def seed_all(seed: int) -> None:
    """Seed the global generators that data is drawn from: those of torch's CPU, Python and numpy."""
    torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`, which seeds the devices too
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what datasets draw from


def mixed(*parts: int | str) -> int:
    """A seed of 63 bits, another for other parts."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)  # noqa: S311 - seeds, not secrets

"""Draw meta batches without end, from a position that can be saved and found again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from layertune.errors import MetaBatchError
from layertune.hosts.endless_data import ALONE, Keep, PlacedData, Share, mixed, over_same_data
from layertune.restoring import kept_random_state, seed_generators

__all__ = ["MetaBatches", "structure"]

Loader = Iterable[Any]


class MetaBatches(Iterator[Any]):
    """Yield the batches of a loader again and again.

    Random numbers that the loader draws in this process, for its order or for augmentation, depend only on the seed and
    the position; the global generators are afterwards as before. A plain ``DataLoader`` is read through
    ``over_same_data``. So several processes get different batches, workers draw the same numbers wherever they start,
    and a position is found without loading the batches before it. Any other loader is read from the start of its pass;
    if its sampler has a ``set_epoch``, that gets the number of the pass.

    Args:
        loader: A loader of batches that can be iterated over again and again.
        seed: Seed of order and augmentation, the same in all processes.
        share: Which of several processes this is.
        keep: Sets random state beside the global generators from a seed inside a block, and restores it after the
            block. MONAI's transforms, for example, have generators of their own.

    Attributes:
        drawn: The number of batches drawn so far.

    Raises:
        MetaBatchError: At once, if the loader cannot be iterated over; later, if it yields no batch.

    Example:
        >>> batches = MetaBatches([1, 2, 3], seed=0)
        >>> [next(batches) for _ in range(4)]
        [1, 2, 3, 1]
        >>> batches.position
        {'seed': 0, 'drawn': 4, 'passes': 1, 'batches': 1}
    """

    def __init__(self, loader: Loader, seed: int, share: Share = ALONE, *, keep: Keep = nullcontext) -> None:
        if not isinstance(loader, Iterable):
            raise MetaBatchError(
                f"a meta loader yields batches in `for batch in loader`, and {type(loader).__name__} does not; give a "
                "DataLoader, or a list of batches"
            )
        shuffles = _shuffles_if_plain(loader)
        if shuffles is not None:
            loader = over_same_data(loader, seed, share, shuffle=shuffles)
        if isinstance(data := getattr(loader, "dataset", None), PlacedData):
            data.keep = keep
        self._loader = loader
        self._keep = keep
        self._share = share
        self._seed = seed
        self._passes = 0
        self._batches = 0
        self.drawn = 0
        self._iterator: Iterator[Any] | None = None

    @property
    def position(self) -> dict[str, int]:
        """The position in the stream, in plain numbers."""
        return {"seed": self._seed, "drawn": self.drawn, "passes": self._passes, "batches": self._batches}

    def go_to(self, position: dict[str, int]) -> None:
        """Go on from a saved position."""
        self._seed, self._passes, self._batches = (position[key] for key in ("seed", "passes", "batches"))
        self.drawn = position["drawn"]
        self._iterator = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._iterate_from_position()
        try:
            batch = self._draw(self._iterator, self._batches)
        except StopIteration:
            batch = self._first_of_next_pass()
        self._batches += 1
        self.drawn += 1
        return batch

    def _iterate_from_position(self) -> Iterator[Any]:
        if isinstance(getattr(self._loader, "dataset", None), PlacedData):
            loader: Any = self._loader
            loader.sampler.seed, loader.sampler.first = self._seed, self._batches * (loader.batch_size or 1)
            return self._iterate_from_start()
        iterator = self._iterate_from_start()
        for number in range(self._batches):
            self._draw(iterator, number)
        return iterator

    def _first_of_next_pass(self) -> Any:
        if self._batches:
            self._passes, self._batches = self._passes + 1, 0
        self._iterator = self._iterate_from_start()
        try:
            return self._draw(self._iterator, 0)
        except StopIteration:
            raise MetaBatchError(
                f"the meta loader ({type(self._loader).__name__}) yields no batch in pass {self._passes + 1}; give one "
                "with data, which can be iterated over again and again"
            ) from None

    def _iterate_from_start(self) -> Iterator[Any]:
        set_epoch = getattr(getattr(self._loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self._passes)
        with self._random_numbers(-1):
            return iter(self._loader)

    def _draw(self, iterator: Iterator[Any], number: int) -> Any:
        with self._random_numbers(number):
            return next(iterator)

    @contextmanager
    def _random_numbers(self, number: int) -> Iterator[None]:
        """Set random state from the place in the stream inside the block, and restore it after the block."""
        seed = mixed(self._seed, self._passes, number, self._share.rank)
        with kept_random_state(), self._keep(seed):
            seed_generators(seed, ())
            yield


def structure(batch: Any) -> str:
    """Describe of which types a batch is made.

    Example:
        >>> import torch
        >>> structure({"image": torch.zeros(2, 1), "names": ["a", "b"]})
        '{image: Tensor, names: [str]}'
    """
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {structure(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        parts = [structure(value) for value in batch]
        return "[" + ", ".join(parts[:1] if len(set(parts)) == 1 and parts[0] != "Tensor" else parts) + "]"
    return type(batch).__name__


def _shuffles_if_plain(loader: Loader) -> bool | None:
    """Return whether a plain loader shuffles, or ``None`` for a loader with its own order, iteration or stream.

    A plain loader goes once over its data, in order or shuffled, each process over its share.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return None
    if any(getattr(type(loader), name) is not getattr(DataLoader, name) for name in ("__iter__", "_get_iterator")):
        return None
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        whole = not sampler.replacement and sampler.num_samples == len(sampler.data_source)
        return True if whole else None
    if isinstance(sampler, DistributedSampler) and type(sampler).__iter__ is DistributedSampler.__iter__:
        return bool(sampler.shuffle)
    return False if type(sampler) is SequentialSampler else None

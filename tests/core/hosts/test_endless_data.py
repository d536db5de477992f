"""A dataset without end: its order, its share for each process, and the workers of the loader it was made from."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from layertune import MetaBatchError
from layertune.hosts.endless_data import EndlessSampler, Share, over_same_data
from noisy_data import Noisy


def test_processes_share_the_samples_of_every_pass() -> None:
    shares = [iter(EndlessSampler(7, 3, Share(rank, 2))) for rank in range(2)]
    stream = [next(shares[number % 2]) for number in range(21)]
    indices = [place.sample for place in stream]
    assert all(sorted(indices[first : first + 7]) == list(range(7)) for first in (0, 7, 14))
    assert len({place.seed for place in stream}) == 21


class Opened(Dataset):
    """A dataset for which each worker opens something, for example a file."""

    opened = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, self.opened])


def open_it(worker: int) -> None:
    info: Any = get_worker_info()
    info.dataset.opened = worker + 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on a single core
def test_a_worker_init_fn_sees_the_users_dataset() -> None:
    loader = over_same_data(DataLoader(Opened(), num_workers=2, worker_init_fn=open_it), 0, Share(), shuffle=False)
    assert [batch.tolist() for batch in islice(loader, 3)] == [[[0, 1]], [[1, 2]], [[2, 1]]]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([1, 2], "is a list; give a meta_loader"),
        (DataLoader(Stream()), "is a Stream; give a meta_loader"),
        (DataLoader(Noisy(), batch_sampler=[[0], [1, 2]]), "list has no batch_size"),
    ],
    ids=["list", "stream", "batches of its own"],
)
def test_training_data_without_indices_or_batch_size_asks_for_a_meta_loader(loader: Any, message: str) -> None:
    with pytest.raises(MetaBatchError, match=message):
        over_same_data(loader, 0, Share())

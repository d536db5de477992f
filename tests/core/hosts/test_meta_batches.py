"""Meta batches: a stream without end that does not move the training's random numbers, at a position to save."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from layertune import MetaBatchError
from layertune.hosts.endless_data import Share
from layertune.hosts.meta_batches import MetaBatches, structure
from noisy_data import SIZE, Noisy


class Own(DataLoader):
    """A loader with an iteration of its own, so it is read from the start."""

    def __iter__(self) -> Any:
        return super().__iter__()


def random_state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002


def numbers(batches: Iterator[Any], count: int) -> list[int]:
    return [index for indices, _ in islice(batches, count) for index in indices.tolist()]


@pytest.mark.parametrize("kind", [DataLoader, Own])
def test_a_stream_goes_on_from_its_position_and_the_global_generators_do_not_move(kind: type[DataLoader]) -> None:
    loader = kind(Noisy(), batch_size=3, shuffle=True)
    before = random_state()
    one = MetaBatches(loader, seed=1)
    drawn = [next(one) for _ in range(17)]
    for count in (0, 1, 6, 7, 8, 16):
        start, other = MetaBatches(loader, seed=1), MetaBatches(loader, seed=2)
        for _ in range(count):
            next(start)
        other.go_to(start.position)
        torch.testing.assert_close([next(other) for _ in range(17 - count)], drawn[count:], rtol=0, atol=0)
    assert random_state() == before


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on a single core
def test_batches_depend_neither_on_the_number_of_workers_nor_on_their_start() -> None:
    """A worker's generators start with it; the fourth batch may be a worker's second batch, or its first."""
    drawn = []
    for workers in (0, 2):
        batches = MetaBatches(DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=workers), seed=1)
        drawn.append([next(batches) for _ in range(3)])
        other = MetaBatches(DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=workers), seed=2)
        other.go_to(batches.position)
        drawn[-1] += [next(batches), next(batches)]
        torch.testing.assert_close([next(other), next(other)], drawn[-1][3:], rtol=0, atol=0)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)


def test_a_plain_loader_gives_every_sample_once_a_pass_in_a_new_order_each() -> None:
    stream = numbers(MetaBatches(DataLoader(Noisy(), batch_size=4, shuffle=True), seed=0), 10)
    one, two = stream[:SIZE], stream[SIZE:]
    assert sorted(one) == sorted(two) == list(range(SIZE))
    assert one != two
    assert one != sorted(one)


def test_a_loader_in_order_stays_in_order_and_its_passes_join() -> None:
    stream = numbers(MetaBatches(DataLoader(Noisy(), batch_size=8), seed=0), 5)
    assert stream == [*range(SIZE), *range(SIZE)]


def test_noise_is_new_in_each_pass() -> None:
    batches = MetaBatches(DataLoader(Noisy(), batch_size=SIZE), seed=0)
    (_, one), (_, two) = next(batches), next(batches)
    assert not torch.equal(one, two)


def test_a_loader_with_a_distributed_sampler_is_not_shared_twice() -> None:
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(Noisy(), num_replicas=2, rank=rank, seed=5)
        loader = DataLoader(Noisy(), batch_size=5, sampler=sampler)
        parts.append(numbers(MetaBatches(loader, seed=1, share=Share(rank, 2)), 2))
    assert sorted(parts[0] + parts[1]) == list(range(SIZE))


def test_keep_gets_a_seed_for_each_place_and_is_left_after_each_batch() -> None:
    seeds: list[int] = []

    class Kept:
        inside = False

        def __init__(self, seed: int) -> None:
            seeds.append(seed)

        def __enter__(self) -> None:
            Kept.inside = True

        def __exit__(self, *_: object) -> None:
            Kept.inside = False

    def loader() -> Iterator[bool]:
        while True:
            yield Kept.inside

    class Endless:
        def __iter__(self) -> Iterator[bool]:
            return loader()

    batches = MetaBatches(Endless(), seed=4, keep=Kept)
    assert [next(batches) for _ in range(3)] == [True] * 3
    assert not Kept.inside
    assert len(set(seeds)) == len(seeds) == 4  # the start of the pass, and three batches


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (3, "and int does not; give a DataLoader"),
        (TensorDataset(torch.zeros(2)), "and TensorDataset does not"),
        ([], r"\(list\) yields no batch in pass 1"),
        (iter([1, 2]), "yields no batch in pass 2"),
        (DataLoader([]), "has length 0"),
    ],
    ids=["number", "data", "empty", "once", "empty data"],
)
def test_a_loader_that_cannot_serve_gives_one_clear_error(loader: Any, message: str) -> None:
    with pytest.raises(MetaBatchError, match=message):
        _ = [next(batches) for batches in [MetaBatches(loader, seed=0)] for _ in range(3)]


def test_structure_names_the_types() -> None:
    x = torch.zeros(1)
    assert structure((x, x)) == "[Tensor, Tensor]"
    assert structure(["a", "b"]) == "[str]"
    assert structure({"image": x, "label": [1]}) == "{image: Tensor, label: [int]}"

"""nnU-Net's trainers on two processes."""

from typing import Any

import pytest
import torch

from nnunet_processes import KINDS, WORLD, worker
from nnunet_runs import write_preprocessed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    write_preprocessed(folder / "preprocessed")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_end_with_the_same_weights(ranks: Any, kind: str) -> None:
    one, other = (rank[kind]["weights"] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


ADAPTATIONS = {"exact": 3, "exact unused": 3, "streaming": 2, "streaming unused": 2}


@pytest.mark.parametrize(("kind", "count"), [*ADAPTATIONS.items(), ("phases", 3), ("phases continued", 6)])
def test_ranks_learn_the_same_rates(ranks: Any, kind: str, count: int) -> None:
    one, other = (rank[kind]["scales"] for rank in ranks)
    assert one == other
    assert len(one) == count
    assert len(set(one[-1])) == 6


@pytest.mark.parametrize("batches", ["seen", "trained"])
@pytest.mark.parametrize("kind", ["exact", "phases"])
def test_each_rank_has_batches_of_its_own(ranks: Any, kind: str, batches: str) -> None:
    one, other = (rank[kind][batches] for rank in ranks)
    assert len(one) == (6 if (kind, batches) == ("phases", "trained") else 3)
    assert not set(one) & set(other)


def test_the_lowest_output_may_have_no_gradient(ranks: Any) -> None:
    assert ranks[0]["streaming unused"]["lowest"] is None
    assert ranks[0]["streaming"]["lowest"] is not None

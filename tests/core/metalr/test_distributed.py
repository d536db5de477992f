"""MetaLR on two processes: wrapped by DDP, and with parameters that FSDP2 shards."""

import pytest
import torch
from torch.optim import SGD, AdamW

from distributed_runs import MODES, STEPS, WORLD, WithUnused, worker
from layertune import MetaLR
from small_runs import Run, assert_same, data, layer_groups, network, train

SEVERAL = ["exact", "streaming", "free", "free streaming"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """All runs of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return [
        {name: Run(*run) for name, run in torch.load(folder / f"rank{rank}.pt", weights_only=True).items()}
        for rank in range(WORLD)
    ]


def alone(net, make, mode, hyper_lr, **options):
    """The same run by one process on the joint batches."""
    optimizer = make(layer_groups(net))
    return train(net, optimizer, MetaLR(optimizer, hyper_lr=hyper_lr, **mode), data(range(STEPS), **options))


def assert_ranks_agree(ranks, name):
    one, other = (rank[name] for rank in ranks)
    assert_same(one, other)
    # One factor moves from step to step; those of layers move apart.
    rates = [next(iter(row.values())) for _, row in one.history][1:] if "free" in name else one.lrs
    assert len({round(rate, 9) for rate in rates}) == len(rates) > 2
    return one


@pytest.mark.parametrize("mode", MODES)
def test_ddp_learns_the_rates_of_one_process(ranks, mode):
    expected = alone(network(), SGD, MODES[mode], 0.02)
    assert_same(assert_ranks_agree(ranks, f"ddp {mode}"), expected, 1e-6)


@pytest.mark.parametrize("mode", SEVERAL)
@pytest.mark.parametrize("case", ["bucket view", "accumulated"])
def test_ddp_learns_them_with_other_buckets_and_with_accumulation(ranks, case, mode):
    expected = alone(network(), SGD, MODES[mode], 0.02)
    assert_same(assert_ranks_agree(ranks, f"ddp {case} {mode}"), expected, 1e-6)


@pytest.mark.parametrize("mode", SEVERAL)
def test_ddp_with_an_unused_layer_learns_the_rates_of_one_process(ranks, mode):
    expected = alone(WithUnused(), SGD, MODES[mode], 0.02)
    assert "free" in mode or expected.lrs[-1] == 0.05
    assert_same(assert_ranks_agree(ranks, f"ddp unused {mode}"), expected, 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_fsdp_learns_the_rates_of_one_process(ranks, mode):
    expected = alone(network(out=1), AdamW, MODES[mode], 2e-3, out=1)
    assert_same(assert_ranks_agree(ranks, f"fsdp {mode}"), expected, 1e-6)


@pytest.mark.parametrize("mode", SEVERAL)
def test_fsdp_resumes_from_its_optimizer_state(ranks, mode):
    for rank in ranks:
        assert_same(rank[f"fsdp resumed {mode}"], rank[f"fsdp {mode}"])

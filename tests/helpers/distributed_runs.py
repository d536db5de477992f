"""What the processes of the distributed tests do: all runs in one group, since starting processes takes long."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from layertune import MetaLR
from small_runs import Batch, Plain, Run, data, layer_groups, network, train

WORLD = 2
STEPS = 5
MODES: dict[str, dict[str, Any]] = {
    "exact": {"rule": "additive"},
    "proportional, every 2": {"rule": "proportional", "every": 2},
    "cosine": {"rule": "cosine"},
    "joint": {"rule": "joint"},
    "streaming": {"rule": "additive", "streaming": True},
    "free": {"rule": "free"},
    "free streaming": {"rule": "free", "streaming": True},
}


class Halves(Plain):
    """Each rank takes its half of the joint batch."""

    def backward(self, net: nn.Module, batch: Batch) -> None:
        x, y = (part.chunk(WORLD)[dist.get_rank()] for part in batch)
        super().backward(net, (x, y))


class Accumulated(Halves):
    """Two micro-batches, of which only the last one is synchronised."""

    def backward(self, net: Any, batch: Batch) -> None:
        first, second = zip(*(part.chunk(WORLD)[dist.get_rank()].chunk(2) for part in batch), strict=True)
        with net.no_sync():
            (nn.functional.mse_loss(net(first[0]), first[1]) / 2).backward()
        (nn.functional.mse_loss(net(second[0]), second[1]) / 2).backward()


class WithUnused(nn.Sequential):
    """A layer that no forward pass runs: its gradient stays None."""

    def __init__(self) -> None:
        super().__init__(*network())
        self.unused = nn.Linear(3, 3).double()
        with torch.no_grad():
            self.unused.weight.fill_(0.5)
            self.unused.bias.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def ddp(make: Callable[[], nn.Module], mode: dict[str, Any], loop: Plain, **options: Any) -> Run:
    net = make()
    optimizer = SGD(layer_groups(net))
    wrapped = DistributedDataParallel(net, **options)
    metalr = MetaLR(optimizer, hyper_lr=0.02, **mode)
    return train(wrapped, optimizer, metalr, data(range(STEPS)), loop)


def sharded() -> nn.Sequential:
    """The last layer has one output, so that one rank holds nothing of it."""
    net = network(out=1)
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(net)
    return net


def fsdp(mode: dict[str, Any], make: Any = AdamW, resume_at: int | None = None) -> Run:
    net = sharded()
    optimizer = make(layer_groups(net))
    metalr = MetaLR(optimizer, hyper_lr=2e-3, **mode)
    batches = data(range(STEPS), out=1)
    ended = train(net, optimizer, metalr, batches[:resume_at], Halves())
    if resume_at is not None:
        state = copy.deepcopy(optimizer.state_dict())
        weights = [parameter.detach().clone() for parameter in net.parameters()]
        net = sharded()
        with torch.no_grad():
            for parameter, weight in zip(net.parameters(), weights, strict=True):
                parameter.copy_(weight)
        optimizer = make(layer_groups(net))
        metalr = MetaLR(optimizer, hyper_lr=2e-3, **mode)
        optimizer.load_state_dict(state)
        ended = train(net, optimizer, metalr, batches[resume_at:], Halves())
    whole = [weight.full_tensor() if isinstance(weight, DTensor) else weight for weight in ended.weights]
    return Run(whole, ended.lrs, ended.history)


def all_runs() -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for name, mode in MODES.items():
        runs[f"ddp {name}"] = ddp(network, mode, Halves())
        runs[f"fsdp {name}"] = fsdp(mode)
    for name in ("exact", "streaming", "free", "free streaming"):
        runs[f"ddp bucket view {name}"] = ddp(network, MODES[name], Halves(), gradient_as_bucket_view=True)
        runs[f"ddp accumulated {name}"] = ddp(network, MODES[name], Accumulated())
        runs[f"ddp unused {name}"] = ddp(WithUnused, MODES[name], Halves(), find_unused_parameters=True)
        runs[f"fsdp resumed {name}"] = fsdp(MODES[name], resume_at=3)
    return runs


def worker(rank: int, folder: str) -> None:
    """One rank: make all runs, and leave what they came to."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD)
    try:
        ended = {name: tuple(run) for name, run in all_runs().items()}
        torch.save(ended, Path(folder) / f"rank{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()

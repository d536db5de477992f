"""Two processes that train one network under DDP in MONAI's engine; started by ``torch.distributed.run``.

``monai_processes.py FOLDER`` writes the results of each process, for each kind of run, to ``KIND RANK.pt``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.data import DataLoader, DistributedSampler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from layertune import Convergence
from layertune_monai import AlchemyHandler, MetaLRHandler
from monai_runs import SIZE, items, network, sgd, train

KINDS: dict[str, dict[str, Any]] = {
    "training data": {},
    "meta": {"meta": True},
    "views": {"views": True, "meta": True},
    "streaming": {"streaming": True},
    "alchemy": {"meta": True, "alchemy": True},
}
PHASES: dict[str, Any] = {"quantile": 0.3, "identification": Convergence(limit=1), "weight": 0.5}


def plain_network() -> nn.Sequential:
    """Build a network without batch statistics, which depend on how a batch is spread over processes."""
    net = network(dropout=0.0)
    net[1] = nn.Identity()
    return net


def run(kind: str, *, world: int = 1) -> dict[str, Any]:
    """Train for two epochs.

    Returns:
        The rates and weights at the end of the run.
    """
    settings = KINDS[kind]
    net: Any = plain_network()
    if settings.get("alchemy"):
        net[1] = nn.GroupNorm(2, 4)  # gammas, and no batch statistics
    optimizer = sgd(net)
    # Each process starts from a random state of its own.
    seed = 3 + int(os.environ.get("RANK", "0"))
    ddp_options = {"gradient_as_bucket_view": "views" in settings, "find_unused_parameters": "alchemy" in settings}
    wrapped = DistributedDataParallel(net, **ddp_options) if world > 1 else net
    data = items()
    sampler = DistributedSampler(data, shuffle=False) if world > 1 else None
    loader = DataLoader(data, batch_size=SIZE if world > 1 else SIZE * 2, sampler=sampler)
    meta = None
    if settings.get("meta"):
        meta_sampler = DistributedSampler(items(1), shuffle=False) if world > 1 else None
        meta = DataLoader(items(1), batch_size=SIZE if world > 1 else SIZE * 2, sampler=meta_sampler)
    handler = MetaLRHandler(optimizer, meta, hyper_lr=0.1, streaming=settings.get("streaming", False))
    phases = [AlchemyHandler(optimizer, **PHASES)] if settings.get("alchemy") else []
    train(wrapped, optimizer, *phases, handler, loader=loader, seed=seed)
    return {"lrs": handler.lrs, "weights": [p.detach() for p in net.parameters()]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        for kind in KINDS:
            torch.save(run(kind, world=2), Path(sys.argv[1]) / f"{kind} {dist.get_rank()}.pt")
    finally:
        dist.destroy_process_group()

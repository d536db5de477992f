"""Two processes that train one module under DDP; started by ``torch.distributed.run``.

``lightning_processes.py FOLDER`` writes the results of each process, for each kind of run, to ``KIND RANK.pt``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from layertune import Convergence
from layertune_lightning import AlchemyCallback, MetaLRCallback
from lightning_runs import SIZE, Batch, Module, samples, trainer

KINDS = ("exact", "views", "manual", "streaming", "alchemy")
PHASES: dict[str, Any] = {"quantile": 0.3, "identification": Convergence(limit=1), "weight": 0.5}


class Numbered(Module):
    """A module without dropout and batch statistics, which depend on how a batch is spread over processes."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1], self.net[3] = nn.Identity(), nn.Identity()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        return mse_loss(self(batch[0]), batch[1])

    def meta_step(self, batch: Batch) -> Tensor:
        seen.extend(batch[2].tolist())
        return mse_loss(self(batch[0]), batch[1])


class ByHand(Numbered):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


seen: list[int] = []


def run(kind: str, size: int = SIZE, **options: Any) -> dict[str, Any]:
    """Train for two epochs.

    Returns:
        The rates and weights at the end of the run, and the numbers of the samples in the meta batches.
    """
    seen.clear()
    torch.manual_seed(3)
    module = ByHand() if kind == "manual" else Numbered()
    learner = MetaLRCallback(hyper_lr=0.1, streaming=kind == "streaming")
    callbacks: list[Any] = [learner]
    if kind == "alchemy":
        module.net[1] = nn.GroupNorm(3, 6)  # gammas, and no batch statistics
        callbacks.insert(0, AlchemyCallback(**PHASES))
    data = TensorDataset(*samples().tensors, torch.arange(len(samples())))
    # In order; Lightning's own sampler would shuffle.
    world = options.get("devices", 1)
    sampler = DistributedSampler(data, world, int(os.environ["RANK"]), shuffle=False) if world > 1 else None
    loader = DataLoader(data, batch_size=size, sampler=sampler, drop_last=True)
    trainer(*callbacks, **options, use_distributed_sampler=False).fit(module, loader)
    return {"lrs": learner.lrs, "weights": [p.detach() for p in module.parameters()], "seen": list(seen)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in KINDS:
        of_kind = {"gradient_as_bucket_view": kind == "views", "find_unused_parameters": kind == "alchemy"}
        strategy = DDPStrategy(process_group_backend="gloo", **of_kind)
        torch.save(run(kind, devices=2, strategy=strategy), Path(sys.argv[1]) / f"{kind} {os.environ['RANK']}.pt")

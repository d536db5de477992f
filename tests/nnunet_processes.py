"""Two processes that train one of nnU-Net's trainers under DDP, which nnU-Net itself does on CUDA only."""

import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from layertune_nnunet import (
    nnUNetTrainerBiDirectional,
    nnUNetTrainerBNScale,
    nnUNetTrainerMetaLR,
    nnUNetTrainerMetaLRStreaming,
    nnUNetTrainerNormOnly,
)
from nnunet_runs import STEPS, make, seed, settings, weights

WORLD = 2
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "exact": (nnUNetTrainerMetaLR, {}),
    "exact unused": (nnUNetTrainerMetaLR, {}),
    "streaming": (nnUNetTrainerMetaLRStreaming, {}),
    "streaming unused": (nnUNetTrainerMetaLRStreaming, {}),
    "fixed": (nnUNetTrainerBiDirectional, {"m": 2, "n": 4}),
    "norms": (nnUNetTrainerNormOnly, {}),
    "penalty": (nnUNetTrainerBNScale, {"lam": 1.0}),
}


def steps(trainer: Any, *, rank: int, unused: bool) -> dict[str, Any]:
    """What a rank ends an epoch with."""
    trainer.is_ddp, trainer.local_rank = True, rank
    wrapper = partial(DistributedDataParallel, find_unused_parameters=unused)
    # Without `device_ids`: there are no devices.
    with patch("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.DDP", lambda network, **_: wrapper(network)):
        trainer.initialize()
    if unused:
        # As under the compiler: the lowest output of deep supervision has no part in the loss.
        trainer.loss.weight_factors = (*trainer.loss.weight_factors[:-1], 0)
    trainer.on_train_start()
    seed(rank)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    seen, draw = [], getattr(trainer, "dataloader_meta", None)
    if draw is not None:
        trainer.dataloader_meta = (seen.append(float(batch["data"].sum())) or batch for batch in draw)
    outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(STEPS)]
    trainer.on_train_epoch_end(outputs)
    lowest = trainer.network.module.decoder.seg_layers[0].weight.grad
    profile = getattr(trainer, "profile", None)
    return {"weights": weights(trainer), "scales": profile and profile.scales, "seen": seen, "lowest": lowest}


def worker(rank: int, folder: str) -> None:
    """One rank: train each kind, and leave what it came to."""
    torch.set_num_threads(1)
    with patch.dict(os.environ, settings(Path(folder))):
        # nnU-Net takes each process of a group for one with a GPU, so the trainers are made before there is a group.
        made = {kind: make(trainer, **values) for kind, (trainer, values) in KINDS.items()}
        dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD)
        try:
            ended = {kind: steps(trainer, rank=rank, unused="unused" in kind) for kind, trainer in made.items()}
            torch.save(ended, Path(folder) / f"rank{rank}.pt")
            dist.barrier()
        finally:
            dist.destroy_process_group()

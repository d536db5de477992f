"""Train nnU-Net's trainers in two processes under DDP on the CPU; nnU-Net itself does so on CUDA only."""

import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from layertune_nnunet import (
    nnUNetTrainerAlchemyMetaLR,
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
    "phases": (nnUNetTrainerAlchemyMetaLR, {"identification": 1, "quantile": 0.05, "epochs": 3}),
    "phases continued": (nnUNetTrainerAlchemyMetaLR, {"identification": 1, "quantile": 0.05, "epochs": 3}),
}


def steps(trainer: Any, *, rank: int, kind: str) -> dict[str, Any]:
    """Train one epoch, or two where phases follow each other, and return what the rank ended with."""
    trainer.is_ddp, trainer.local_rank = True, rank
    wrapper = partial(DistributedDataParallel, find_unused_parameters="unused" in kind)
    # Without `device_ids`: there are no devices.
    with patch("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.DDP", lambda network, **_: wrapper(network)):
        trainer.initialize()
    if "continued" in kind:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    if "unused" in kind:
        # As with the compiler, the lowest output of deep supervision does not count in the loss.
        trainer.loss.weight_factors = (*trainer.loss.weight_factors[:-1], 0)
    trainer.on_train_start()
    seen: list[float] = []
    if getattr(trainer, "dataloader_meta", None) is not None:
        trainer.dataloader_meta = watched(trainer.dataloader_meta, seen)
    trained: list[float] = []
    trainer.dataloader_train = watched(trainer.dataloader_train, trained)
    for _ in range(2 if kind == "phases" else 1):
        epoch(trainer, rank)
    dist.barrier()  # rank 0 has saved
    lowest = trainer.network.module.decoder.seg_layers[0].weight.grad
    profile = getattr(trainer, "profile", None)
    scales = profile and profile.scales
    return {"weights": weights(trainer), "scales": scales, "seen": seen, "trained": trained, "lowest": lowest}


def watched(batches: Any, sums: list[float]) -> Any:
    """Yield the same batches, and append the sum of each to ``sums``."""
    for batch in batches:
        sums.append(float(batch["data"].sum()))
        yield batch


def epoch(trainer: Any, rank: int) -> None:
    trainer.on_epoch_start()
    seed(rank)  # each rank has batches of its own
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(STEPS)])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    trainer.on_epoch_end()


def worker(rank: int, folder: str) -> None:
    """Run one rank: train each kind of trainer, and save what each ended with."""
    torch.set_num_threads(1)
    with patch.dict(os.environ, settings(Path(folder))):
        # In a process group, nnU-Net expects a GPU, so the trainers are made before the group.
        made = {kind: make(trainer, **values) for kind, (trainer, values) in KINDS.items()}
        dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD)
        try:
            ended = {kind: steps(trainer, rank=rank, kind=kind) for kind, trainer in made.items()}
            torch.save(ended, Path(folder) / f"rank{rank}.pt")
            dist.barrier()
        finally:
            dist.destroy_process_group()

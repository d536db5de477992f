"""Runs of the bundle, in this process and by MONAI's commands, on data small enough for a test."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from monai.bundle import run

__all__ = ["SMALL", "as_arguments", "command", "flow", "monai", "state"]

# A network of four narrow levels on patches of 16 voxels a side.
SMALL: dict[str, Any] = {
    "num_workers": 0,
    "train_cases": 4,
    "val_cases": 2,
    "epochs": 2,
    "patch_size": [16, 16, 16],
    "network_def#channels": [4, 8, 8, 8],
    "network_def#num_res_units": 0,
}


def flow(bundle: Path, data: Path, *overlays: str, config: str = "train", **options: Any) -> None:
    """A configuration of the bundle, run in this process."""
    files = [str(bundle / f"configs/{name}.json") for name in (config, *overlays)]
    run(
        config_file=files, logging_file=False, **{"bundle_root": str(bundle), "data_dir": str(data), **SMALL, **options}
    )


def state(bundle: Path, epoch: int = 2) -> dict[str, Any]:
    """The last state of a run."""
    held: dict[str, Any] = torch.load(bundle / f"models/checkpoint_epoch={epoch}.pt", weights_only=True)
    return held


def as_arguments(**options: Any) -> list[str]:
    """Options as a command line takes them."""
    return [part for name, value in {**SMALL, **options}.items() for part in (f"--{name}", str(value).replace(" ", ""))]


def command(*arguments: str, ranks: int = 1) -> list[str]:
    """MONAI's command, started by itself or by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, "-m", "monai.bundle", *arguments]


def monai(folder: Path, *arguments: str, ranks: int = 1, succeeds: bool = True) -> str:
    """Run MONAI's command in a folder; what it wrote."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(*arguments, ranks=ranks),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert (done.returncode == 0) == succeeds, done.stdout
    return done.stdout

"""Runs of the bundle on small data, in this process and by MONAI's commands."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from monai.bundle import create_workflow, run

from layertune import LayertuneError

__all__ = ["SMALL", "adapted_workflow", "as_arguments", "command", "monai", "own_error", "run_config", "saved_state"]

SMALL: dict[str, Any] = {
    "num_workers": 0,
    "train_cases": 4,
    "val_cases": 2,
    "epochs": 2,
    "patch_size": [16, 16, 16],
    "network_def#channels": [4, 8, 8, 8],
    "network_def#num_res_units": 0,
}
"""Overrides for a network of four narrow levels on patches of 16 voxels a side."""


def run_config(bundle: Path, data: Path, *overlays: str, config: str = "train", **options: Any) -> None:
    """Run a configuration of the bundle in this process."""
    files = [str(bundle / f"configs/{name}.json") for name in (config, *overlays)]
    run(
        config_file=files, logging_file=False, **{"bundle_root": str(bundle), "data_dir": str(data), **SMALL, **options}
    )


def saved_state(bundle: Path, epoch: int = 2) -> dict[str, Any]:
    """Return the checkpoint of an epoch."""
    state: dict[str, Any] = torch.load(bundle / f"models/checkpoint_epoch={epoch}.pt", weights_only=True)
    return state


def adapted_workflow(bundle: Path, *, suffix: str = "json", **overrides: Any) -> Any:
    """Return MONAI's workflow of an adapted bundle, after ``initialize``."""
    files = [str(bundle / "configs" / name) for name in (f"train.{suffix}", "layertune.json")]
    return create_workflow(config_file=files, logging_file=False, **{"bundle_root": str(bundle), **overrides})


def own_error(error: BaseException) -> LayertuneError:
    """Return the one error of layertune behind the errors that MONAI adds about lines of the configuration."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    (own,) = [cause for cause in chain if isinstance(cause, LayertuneError)]
    return own


def as_arguments(**options: Any) -> list[str]:
    """Return options as a command line takes them."""
    return [part for name, value in {**SMALL, **options}.items() for part in (f"--{name}", str(value).replace(" ", ""))]


def command(*arguments: str, ranks: int = 1) -> list[str]:
    """Return MONAI's command, which starts by itself or by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, "-m", "monai.bundle", *arguments]


def monai(folder: Path, *arguments: str, ranks: int = 1, succeeds: bool = True) -> str:
    """Run MONAI's command in a folder, and return its output."""
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

"""Build the network of a checkpoint from the plan that nnU-Net keeps in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from layertune.weights.file import read_checkpoint
from layertune_nnunet.errors import PlansError
from layertune_nnunet.tools.find_trainer import find_trainer
from layertune_nnunet.tools.planned_network import PlannedNetwork, build_network

__all__ = ["checkpoint_network"]

FINAL = "checkpoint_final.pth"


def checkpoint_network(model: Path) -> tuple[Path, PlannedNetwork, dict[str, Tensor]]:
    """Build the network of a checkpoint, without running code from the file.

    Args:
        model: A checkpoint of nnU-Net, or a folder that holds exactly one ``checkpoint_final.pth``.

    Returns:
        The path of the checkpoint; its network, with initial weights; and the weights in the file, by name.

    Raises:
        WeightsError: The file cannot be read without running code from it.
        PlansError: The folder has no such file or several, or the file holds no plan.
        TrainerNameError: The trainer that the checkpoint names cannot be found.
    """
    file = _only_one(model) if model.is_dir() else model
    content: Any = read_checkpoint(file)
    match content:
        case {
            "trainer_name": str(trainer),
            "network_weights": Mapping() as weights,
            "init_args": {"plans": Mapping() as plan, "configuration": str(setting), "dataset_json": description},
        }:
            planned = build_network(find_trainer(trainer), plan, description, setting, origin=file)
            return file, planned, dict(weights)
    raise PlansError(
        f"{file} is not a checkpoint that nnU-Net's training saved, with its plan; for a file of weights, name the "
        "network: layertune gammas FILE --model NETWORK"
    )


def _only_one(folder: Path) -> Path:
    files = sorted(folder.rglob(FINAL))
    if len(files) != 1:
        listed = ", ".join(str(file.relative_to(folder)) for file in files) or "none"
        raise PlansError(f"expected one {FINAL} in {folder}, but found {listed}; name one checkpoint")
    return files[0]

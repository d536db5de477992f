"""The network of a checkpoint, by the plan that nnU-Net keeps in it."""

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
    """Build the network of a checkpoint; no code that the file carries is run.

    Args:
        model: a checkpoint of nnU-Net, or a folder with one ``checkpoint_final.pth`` in it.

    Returns:
        The checkpoint's file; its network, with initial weights; and the weights in the file, by name.

    Raises:
        WeightsError: the file cannot be read, or would have to be run.
        PlansError: the folder has no such file or several, or the file holds no plan.
        TrainerNameError: the trainer that it names is not here.
    """
    file = _only_one(model) if model.is_dir() else model
    content: Any = read_checkpoint(file)
    match content:
        case {
            "trainer_name": str(trainer),
            "network_weights": Mapping() as weights,
            "init_args": {"plans": Mapping() as plan, "configuration": str(setting), "dataset_json": description},
        }:
            network = build_network(find_trainer(trainer), plan, description, setting, origin=file)
            return file, network, dict(weights)
    raise PlansError(
        f"{file} is no checkpoint of a training of nnU-Net, which holds its plan; for weights alone, name their "
        "network: layertune gammas FILE --model NETWORK"
    )


def _only_one(folder: Path) -> Path:
    found = sorted(folder.rglob(FINAL))
    if len(found) != 1:
        listed = ", ".join(str(file.relative_to(folder)) for file in found) or "none"
        raise PlansError(f"expected one {FINAL} in {folder}, and found {listed}; name one checkpoint")
    return found[0]

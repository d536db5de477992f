"""Build the network of a plan, as nnU-Net does."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from layertune_nnunet.errors import PlansError

__all__ = ["PlannedNetwork", "build_network", "find_plan", "planned_network"]


@dataclass(frozen=True)
class PlannedNetwork:
    """Hold a network as one of nnU-Net's trainers starts with it.

    Attributes:
        network: The network, with random weights.
        example: An uninitialized batch of two images, with the plan's channels and patch size.
        trainer: The name of the trainer that builds this network.
    """

    network: nn.Module
    example: torch.Tensor
    trainer: str


def planned_network(plans: Path, dataset_json: Path, configuration: str, *, seed: int = 0) -> PlannedNetwork:
    """Build the network that ``nnUNetTrainer`` has for a plan, with deep supervision and seeded weights.

    Args:
        plans: Path of ``nnUNetPlans.json`` or of another plan.
        dataset_json: Path of ``dataset.json``, which gives channels and labels.
        configuration: A configuration of the plan, as in ``"3d_fullres"``.
        seed: Seed of the initial weights. The random state of the process does not change.

    Raises:
        PlansError: A file is missing or cannot be read, or the plan has no such configuration.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return build_network(nnUNetTrainer, _read(plans), _read(dataset_json), configuration, origin=plans, seed=seed)


def build_network(
    trainer: type,
    plan: Mapping[str, Any],
    description: Mapping[str, Any],
    configuration: str,
    *,
    origin: Path,
    seed: int = 0,
) -> PlannedNetwork:
    """Build the network that a trainer has for a plan, with deep supervision and seeded weights.

    Args:
        trainer: The class of the trainer.
        plan: The plan, as ``nnUNetPlans.json`` holds it.
        description: The data set's channels and labels, as ``dataset.json`` holds them.
        configuration: A configuration of the plan, as in ``"3d_fullres"``.
        origin: The file that holds the plan, for error messages.
        seed: Seed of the initial weights. The random state of the process does not change.

    Raises:
        PlansError: The plan has no such configuration, or the trainer's ``build_network_architecture`` takes arguments
            that nnU-Net 2.8 does not pass.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    known = plan.get("configurations")
    if not isinstance(known, Mapping) or configuration not in known:
        listed = ", ".join(known) if isinstance(known, Mapping) else "none, so it is not a plan"
        raise PlansError(f"{origin} has no configuration {configuration!r}; it has {listed}")
    # nnU-Net has no types, so mypy does not know that its trainers have this method.
    build = cast(Any, trainer).build_network_architecture
    if "plans_manager" not in inspect.signature(build).parameters:
        raise PlansError(
            f"{trainer.__name__} builds its network as older versions of nnU-Net did; change its "
            "build_network_architecture so that it takes plans_manager, configuration_manager, num_input_channels, "
            "num_output_channels and enable_deep_supervision"
        )
    manager = PlansManager(plan)
    setting = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, setting, description)
    heads = manager.get_label_manager(description).num_segmentation_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(manager, setting, channels, heads, True)
    return PlannedNetwork(network, torch.empty(2, channels, *map(int, setting.patch_size)), trainer.__name__)


def find_plan(dataset: str, plans: str) -> tuple[Path, Path]:
    """Find the plan and the ``dataset.json`` of a data set that nnU-Net has planned.

    Args:
        dataset: Number or name of the data set, as ``nnUNetv2_train`` takes it.
        plans: Name of the plan, as ``nnUNetv2_train -p`` takes it.

    Returns:
        The paths of the plan and of ``dataset.json``.

    Raises:
        PlansError: ``nnUNet_preprocessed`` is not set, or does not have exactly one such data set.
    """
    from nnunetv2.paths import nnUNet_preprocessed

    setting = nnUNet_preprocessed.get()
    if not setting:
        raise PlansError("nnUNet_preprocessed is not set, so no data set can be found; set it, or give --plans FILE")
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdigit() else dataset
    folders = sorted(path for path in Path(setting).glob(pattern) if path.is_dir())
    if len(folders) != 1:
        names = ", ".join(path.name for path in folders) or "none"
        raise PlansError(
            f"expected one data set {pattern} in {setting}, but found {names}; plan it first, or give its full name"
        )
    return folders[0] / f"{plans}.json", folders[0] / "dataset.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlansError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise PlansError(f"{file} holds no JSON object, but nnU-Net's plans and dataset.json do")
    return content

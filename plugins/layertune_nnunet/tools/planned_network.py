"""The network that nnU-Net builds from a plan."""

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
    """A network as a trainer of nnU-Net starts with it.

    Attributes:
        network: with random weights.
        example: an empty batch of 2, of the plan's channels and patch size.
        trainer: name of the trainer whose architecture it is.
    """

    network: nn.Module
    example: torch.Tensor
    trainer: str


def planned_network(plans: Path, dataset_json: Path, configuration: str, *, seed: int = 0) -> PlannedNetwork:
    """Build the network of a plan, with deep supervision, as ``nnUNetTrainer`` does; all its weights are seeded.

    Args:
        plans: ``nnUNetPlans.json`` or another plan.
        dataset_json: ``dataset.json``, which knows channels and labels.
        configuration: ``"3d_fullres"``, ``"2d"``, ...
        seed: of the initial weights. The process's random numbers go on as if nothing had been drawn.

    Raises:
        PlansError: a file is not there or cannot be read, or there is no such configuration.
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
    """Build the network that a trainer has for a plan, with deep supervision; all its weights are seeded.

    Args:
        trainer: nnU-Net's, or another.
        plan: the content of ``nnUNetPlans.json``.
        description: the content of ``dataset.json``.
        configuration: ``"3d_fullres"``, ``"2d"``, ...
        origin: the file that holds the plan, for messages.
        seed: of the initial weights.

    Raises:
        PlansError: there is no such configuration, or the trainer asks for what nnU-Net 2.8 does not hand on.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    known = plan.get("configurations")
    if not isinstance(known, Mapping) or configuration not in known:
        listed = ", ".join(known) if isinstance(known, Mapping) else "none, so it is no plan"
        raise PlansError(f"{origin} has no configuration {configuration!r}; it has {listed}")
    # nnU-Net, whose trainers have this method, has no types.
    build = cast(Any, trainer).build_network_architecture
    if "plans_manager" not in inspect.signature(build).parameters:
        raise PlansError(
            f"{trainer.__name__} builds its network in the way of older versions of nnU-Net; let its "
            "build_network_architecture take plans_manager, configuration_manager, num_input_channels, "
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
    """The plan and the ``dataset.json`` of a data set that nnU-Net has planned.

    Args:
        dataset: its number or name, as ``nnUNetv2_train`` takes it.
        plans: name of the plan, as ``-p`` takes it.

    Raises:
        PlansError: ``nnUNet_preprocessed`` is not set, or has no such data set or more than one.
    """
    from nnunetv2.paths import nnUNet_preprocessed

    setting = nnUNet_preprocessed.get()
    if not setting:
        raise PlansError("nnUNet_preprocessed is not set, so no data set can be found; set it, or give --plans FILE")
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdigit() else dataset
    folders = sorted(path for path in Path(setting).glob(pattern) if path.is_dir())
    if len(folders) != 1:
        found = ", ".join(path.name for path in folders) or "none"
        raise PlansError(f"expected one data set {pattern} in {setting}, and found {found}; plan it first, or name it")
    return folders[0] / f"{plans}.json", folders[0] / "dataset.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlansError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise PlansError(f"{file} holds no JSON object, as nnU-Net's files do")
    return content

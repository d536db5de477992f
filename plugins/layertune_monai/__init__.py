"""layertune for MONAI: handlers for its engines, a bundle, and the functions that bundles name."""

from typing import TYPE_CHECKING

from layertune.hosts.plugin import lazy_names
from layertune.old_paths import redirect
from layertune_monai.plugin import PLUGIN

if TYPE_CHECKING:
    from layertune_monai.bundle.checkpoints import BestModelSaver, RunSettings, last_checkpoint, training_state
    from layertune_monai.bundle.decathlon import TaskInfo, images_in, split_cases, task_info
    from layertune_monai.bundle.epoch_seeds import EpochSeeds
    from layertune_monai.bundle.folder import check_patch, check_paths, describe_task, write_bundle
    from layertune_monai.bundle.label_check import CheckLabelsd
    from layertune_monai.bundle.methods import method_handlers
    from layertune_monai.bundle.overrides import check_overrides
    from layertune_monai.bundle.polynomial_decay import PolynomialDecay
    from layertune_monai.bundle.switches import check_switches, identification_phase
    from layertune_monai.bundle.training import Training
    from layertune_monai.genesis.unet import GenesisUNet
    from layertune_monai.handlers.alchemy import AlchemyHandler
    from layertune_monai.handlers.gamma_penalty import GammaPenaltyHandler
    from layertune_monai.handlers.layer_freeze import LayerFreezeHandler
    from layertune_monai.handlers.metalr import MetaLRHandler
    from layertune_monai.layer_groups import param_groups
    from layertune_monai.weights import check_frozen_layers, load_pretrained

__all__ = [
    "PLUGIN",
    "AlchemyHandler",
    "BestModelSaver",
    "CheckLabelsd",
    "EpochSeeds",
    "GammaPenaltyHandler",
    "GenesisUNet",
    "LayerFreezeHandler",
    "MetaLRHandler",
    "PolynomialDecay",
    "RunSettings",
    "TaskInfo",
    "Training",
    "check_frozen_layers",
    "check_overrides",
    "check_patch",
    "check_paths",
    "check_switches",
    "describe_task",
    "identification_phase",
    "images_in",
    "last_checkpoint",
    "load_pretrained",
    "method_handlers",
    "param_groups",
    "split_cases",
    "task_info",
    "training_state",
    "write_bundle",
]

# Module paths of version 0.1. Bundles on users' disks name those of the first group.
redirect(
    dict.fromkeys(
        (
            "layertune_monai.checkpoints",
            "layertune_monai.decathlon",
            "layertune_monai.epoch_seeds",
            "layertune_monai.label_check",
            "layertune_monai.phases",
            "layertune_monai.polynomial_decay",
        ),
        "layertune_monai.bundle.version_0_1",
    )
    | {
        "layertune_monai.alchemy_handler": "layertune_monai.handlers.alchemy",
        "layertune_monai.bundle_workflow": "layertune_monai.bundle.workflow",
        "layertune_monai.gamma_penalty_handler": "layertune_monai.handlers.gamma_penalty",
        "layertune_monai.genesis_pretext": "layertune_monai.genesis.pretext",
        "layertune_monai.genesis_unet": "layertune_monai.genesis.unet",
        "layertune_monai.layer_freeze_handler": "layertune_monai.handlers.layer_freeze",
        "layertune_monai.meta_loss": "layertune_monai.handlers.meta_loss",
        "layertune_monai.metalr_handler": "layertune_monai.handlers.metalr",
        "layertune_monai.randomness": "layertune_monai.handlers.transform_state",
        "layertune_monai.report": "layertune_monai.handlers.report",
        "layertune_monai.train_config": "layertune_monai.bundle.train_config",
        "layertune_monai.training": "layertune_monai.bundle.training",
    }
)

_MODULES = {
    "AlchemyHandler": "layertune_monai.handlers.alchemy",
    "BestModelSaver": "layertune_monai.bundle.checkpoints",
    "CheckLabelsd": "layertune_monai.bundle.label_check",
    "EpochSeeds": "layertune_monai.bundle.epoch_seeds",
    "GammaPenaltyHandler": "layertune_monai.handlers.gamma_penalty",
    "GenesisUNet": "layertune_monai.genesis.unet",
    "LayerFreezeHandler": "layertune_monai.handlers.layer_freeze",
    "MetaLRHandler": "layertune_monai.handlers.metalr",
    "PolynomialDecay": "layertune_monai.bundle.polynomial_decay",
    "RunSettings": "layertune_monai.bundle.checkpoints",
    "TaskInfo": "layertune_monai.bundle.decathlon",
    "Training": "layertune_monai.bundle.training",
    "check_frozen_layers": "layertune_monai.weights",
    "check_overrides": "layertune_monai.bundle.overrides",
    "check_patch": "layertune_monai.bundle.folder",
    "check_paths": "layertune_monai.bundle.folder",
    "check_switches": "layertune_monai.bundle.switches",
    "describe_task": "layertune_monai.bundle.folder",
    "identification_phase": "layertune_monai.bundle.switches",
    "images_in": "layertune_monai.bundle.decathlon",
    "last_checkpoint": "layertune_monai.bundle.checkpoints",
    "load_pretrained": "layertune_monai.weights",
    "method_handlers": "layertune_monai.bundle.methods",
    "param_groups": "layertune_monai.layer_groups",
    "split_cases": "layertune_monai.bundle.decathlon",
    "task_info": "layertune_monai.bundle.decathlon",
    "training_state": "layertune_monai.bundle.checkpoints",
    "write_bundle": "layertune_monai.bundle.folder",
}

__getattr__ = lazy_names(__name__, PLUGIN, _MODULES.get)

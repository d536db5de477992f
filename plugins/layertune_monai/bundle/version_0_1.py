"""Names of version 0.1, which bundles on users' disks still hold.

``layertune_monai/__init__.py`` redirects the module paths of version 0.1 (``layertune_monai.checkpoints``,
``layertune_monai.decathlon``, ``layertune_monai.phases``, ...) to this module.
"""

from layertune import Convergence
from layertune_monai.bundle.checkpoints import BestModelSaver, RunSettings, last_checkpoint, training_state
from layertune_monai.bundle.decathlon import TaskInfo, images_in, split_cases, task_info
from layertune_monai.bundle.epoch_seeds import EpochSeeds
from layertune_monai.bundle.label_check import CheckLabelsd
from layertune_monai.bundle.polynomial_decay import PolynomialDecay
from layertune_monai.bundle.switches import check_switches, identification_phase

__all__ = [
    "BestModelSaver",
    "CheckLabelsd",
    "EpochSeeds",
    "PolynomialDecay",
    "RunSettings",
    "TaskInfo",
    "check_switches",
    "identification",
    "images_in",
    "last_checkpoint",
    "split_cases",
    "state_of",
    "task_info",
]

state_of = training_state


def identification(epochs: int, *, of: int, patience: int | None = None, val_interval: int = 1) -> Convergence:
    """Call ``identification_phase`` with the argument names of version 0.1.

    Args:
        epochs: The largest number of epochs of the identification.
        of: The number of epochs of the whole run.
        patience: The number of validations without a better score after which the identification ends.
        val_interval: The number of epochs between two validations.

    Example:
        >>> identification(20, of=100, val_interval=5)
        Convergence(patience=None, limit=4, min_delta=0.0, mode='max')
    """
    return identification_phase(epochs, total_epochs=of, patience=patience, val_interval=val_interval)

"""Find a trainer by its name."""

import layertune_nnunet
from layertune_nnunet.errors import TrainerNameError
from layertune_nnunet.tools.trainer_path import VARIABLE

__all__ = ["find_trainer"]


def find_trainer(name: str) -> type:
    """Return the trainer of this name: layertune's, nnU-Net's, or one in a folder of ``nnUNet_extTrainer``.

    Raises:
        TrainerNameError: There is no such trainer, or a suffix of its name cannot be read.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        # First, because nnU-Net would search all of its own modules before, which takes seconds.
        own: type = getattr(layertune_nnunet, name)
        return own
    except AttributeError:
        pass
    try:
        trainer: type = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise TrainerNameError(
            f"the trainer {name} is neither nnU-Net's nor layertune's nor in a folder of {VARIABLE}, so its network is "
            f"not known; add its folder to {VARIABLE}"
        ) from error
    return trainer

"""A trainer by its name."""

import layertune_nnunet
from layertune_nnunet.errors import TrainerNameError
from layertune_nnunet.tools.trainer_path import VARIABLE

__all__ = ["find_trainer"]


def find_trainer(name: str) -> type:
    """The trainer of this name: layertune's, nnU-Net's, or one in a folder of ``nnUNet_extTrainer``.

    Raises:
        TrainerNameError: there is none, or its suffixes cannot be read.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        own: type = getattr(layertune_nnunet, name)  # nnU-Net looks through all of its own first, which takes a while
        return own
    except AttributeError:
        pass
    try:
        found: type = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise TrainerNameError(
            f"the trainer {name} is neither nnU-Net's nor layertune's nor in a folder of {VARIABLE}, so what network "
            "it builds is not known; add its folder there"
        ) from error
    return found

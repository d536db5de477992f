"""What nnU-Net finds in the folder that ``nnUNet_extTrainer`` names: the trainers of the installed package.

nnU-Net forgets the modules of such a folder after each look-up; a class that was defined here would be another one
each time, and could not be pickled.
"""

from typing import Any

from layertune_nnunet.trainers import catalogue as trainers


def __getattr__(name: str) -> Any:
    return getattr(trainers, name)

"""The module that nnU-Net finds in the folder of ``nnUNet_extTrainer``; it hands on the trainers of the package.

nnU-Net forgets the modules of such a folder after each search. A class that is defined here would be a new class at
each search, and could not be pickled.
"""

from typing import Any

from layertune_nnunet.trainers import catalogue


def __getattr__(name: str) -> Any:
    return getattr(catalogue, name)

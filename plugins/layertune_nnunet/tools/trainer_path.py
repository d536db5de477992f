"""Where nnU-Net finds layertune's trainers."""

import os
from pathlib import Path

__all__ = ["FOLDER", "VARIABLE", "trainer_path"]

VARIABLE = "nnUNet_extTrainer"
"""nnU-Net's list of folders with trainers, separated as those of ``PATH`` are."""

FOLDER = Path(__file__).parents[1] / "trainer_folder"
"""The folder that holds nothing but a way to the trainers of this package."""


def trainer_path(present: str | None = None) -> str:
    """What ``nnUNet_extTrainer`` has to be, so that nnU-Net finds layertune's trainers and all that it found before.

    Args:
        present: its value so far; by default the environment's.

    Example:
        >>> trainer_path("/my/trainers").split(os.pathsep) == ["/my/trainers", str(FOLDER)]
        True
        >>> trainer_path(trainer_path("")) == trainer_path("") == str(FOLDER)
        True
    """
    given = os.environ.get(VARIABLE, "") if present is None else present
    folders = [folder for folder in given.split(os.pathsep) if folder.strip()]
    return os.pathsep.join(folders if str(FOLDER) in folders else [*folders, str(FOLDER)])

"""The folder in which nnU-Net finds layertune's trainers."""

import os
from pathlib import Path

__all__ = ["FOLDER", "VARIABLE", "trainer_path"]

VARIABLE = "nnUNet_extTrainer"
"""nnU-Net's environment variable with a list of folders of trainers, separated as in ``PATH``."""

FOLDER = Path(__file__).parents[1] / "trainer_folder"
"""The folder with one module, which hands on the trainers of this package."""


def trainer_path(present: str | None = None) -> str:
    """Return a value for ``nnUNet_extTrainer`` that adds layertune's trainers to the folders that it has.

    Args:
        present: The present value. By default, it is read from the environment.

    Example:
        >>> trainer_path("/my/trainers").split(os.pathsep) == ["/my/trainers", str(FOLDER)]
        True
        >>> trainer_path(trainer_path("")) == trainer_path("") == str(FOLDER)
        True
    """
    variable = os.environ.get(VARIABLE, "") if present is None else present
    folders = [folder for folder in variable.split(os.pathsep) if folder.strip()]
    return os.pathsep.join(folders if str(FOLDER) in folders else [*folders, str(FOLDER)])

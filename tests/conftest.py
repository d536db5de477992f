"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data: Task04_Hippocampus as the Medical Segmentation Decathlon gives it."""
    setting = os.environ.get("LAYERTUNE_DATA")
    if not setting:
        pytest.skip("no real data: set LAYERTUNE_DATA to the folder that holds Task04_Hippocampus")
    folder = Path(setting)
    if not folder.is_dir():
        pytest.fail(f"LAYERTUNE_DATA is {setting!r}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def xrays_dir(data_dir: Path) -> Path:
    """The folder with real data, where it holds the chest X-rays too."""
    if not (data_dir / "pneumoniamnist.npz").is_file():
        pytest.skip("no real X-rays: put pneumoniamnist.npz into the folder that LAYERTUNE_DATA names")
    return data_dir

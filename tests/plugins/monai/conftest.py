"""Fixtures of the tests that run the bundle; MONAI is imported only where a test asks for them."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a small task in the layout of the Decathlon."""
    from decathlon_task import make_task

    return make_task(tmp_path_factory.mktemp("data"), cases=8).parent


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The bundle in a folder of its own."""
    from layertune_monai import write_bundle

    return write_bundle(tmp_path / "bundle")

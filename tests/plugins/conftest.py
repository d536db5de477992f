"""Fixtures of the hosts' tests; hosts are imported only where a test asks for them."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest


@pytest.fixture(scope="session")
def _preprocessed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nnunet_runs import write_preprocessed

    folder = tmp_path_factory.mktemp("nnunet") / "preprocessed"
    write_preprocessed(folder)
    return folder


@pytest.fixture
def nnunet(_preprocessed_once: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with a small data set as nnU-Net preprocesses it; nnU-Net's variables point there."""
    from nnunet_runs import preprocessed

    copytree(_preprocessed_once, tmp_path / "preprocessed")
    with preprocessed(tmp_path):
        yield tmp_path

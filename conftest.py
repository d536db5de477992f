"""What the tests and the doctests share: fixed seeds, one thread, figures without a screen."""

import os
import random

os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import torch


def pytest_configure() -> None:
    # The networks of the tests are so small that more threads only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the hosts draw from this generator
    torch.manual_seed(0)

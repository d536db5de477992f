"""MONAI's engine in two processes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return the results of both processes, for each kind of run."""
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, Path(monai_processes.__file__), folder], check=True, timeout=500)
    return {
        kind: [torch.load(folder / f"{kind} {rank}.pt", weights_only=True) for rank in range(2)]
        for kind in monai_processes.KINDS
    }


@pytest.mark.parametrize("kind", monai_processes.KINDS)
def test_two_processes_learn_the_same_rates(kind: str, two_processes: dict[str, Any]) -> None:
    one, two = two_processes[kind]
    assert one["lrs"] == two["lrs"]
    torch.testing.assert_close(one["weights"], two["weights"], rtol=0, atol=0)
    assert len(one["lrs"]) == 3


@pytest.mark.parametrize("kind", ["meta", "views", "streaming", "alchemy"])
def test_two_processes_learn_the_rates_that_one_learns(kind: str, two_processes: dict[str, Any]) -> None:
    """The mean of both processes' gradients is the gradient of a batch twice as large."""
    one, _ = two_processes[kind]
    alone = monai_processes.run(kind)
    assert one["lrs"] == pytest.approx(alone["lrs"], rel=1e-5)
    torch.testing.assert_close(one["weights"], alone["weights"], rtol=1e-5, atol=1e-6)

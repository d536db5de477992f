"""Studies on Ray: a lost node loses no trial, a search, and everything else without Ray."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from layertune_studies.config.study import Study
from layertune_studies.engine.context import Result, StudyContext
from layertune_studies.engine.run import run_study
from layertune_studies.engine.trial import Trial
from layertune_studies.errors import DataError, StudyError
from layertune_studies.results.table import RowKey, chosen_trials
from study_runs import study_of, write_images, write_study

QUIET = Console(quiet=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without cores for trials, and two nodes of one core each."""
    import ray
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **options})
    try:
        made.nodes = [made.add_node(num_cpus=1, **options) for _ in range(2)]
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def local() -> Iterator[None]:
    """No cluster at hand, so that one is made of this machine; it ends with the test."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


def study(**changes: Any) -> Study:
    return Study.model_validate(study_of(network={"name": "test_resnet"}, **changes))


@pytest.mark.slow
def test_a_node_that_is_lost_in_the_middle_loses_no_trial(root: Path, tmp_path: Path, cluster: Any) -> None:
    from layertune_studies.engine.ray import OnRay

    given: list[str] = []

    class LosesANode(OnRay):
        def run(self, context: StudyContext, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
            for trial, result in super().run(context, trials):
                if not given:
                    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
                given.append(trial.name(context.study))
                yield trial, result

    config = study(lrs=[0.001, 0.003, 0.01, 0.03], seeds=2)
    run_study(config, tmp_path / "ray", root, executor=LosesANode(cluster.address), console=QUIET)
    assert len(given) == len(set(given)) == 8
    there = sorted(path.stem for path in (tmp_path / "ray" / "results").glob("flat_*"))
    assert there == sorted(given)
    assert len(chosen_trials(StudyContext(config, root, run_store(tmp_path / "ray")))[RowKey("flat", 8)]) == 2
    # On this machine the same trials come out alike, and an error of a trial comes as it was raised.
    run_study(study(lrs=[0.01]), tmp_path / "here", root, console=QUIET)
    (name,) = (path.stem for path in (tmp_path / "here" / "results").glob("flat_*"))
    ours, theirs = (run_store(tmp_path / part).load(name) for part in ("here", "ray"))
    assert ours is not None
    assert theirs is not None
    assert ours["test"] == pytest.approx(theirs["test"])
    too_many = study(data={"set": "pneumoniamnist", "classes": 3, "size": [16, 16], "labelled": [13]})
    with pytest.raises(DataError, match="13 labelled cases were asked for"):
        run_study(too_many, tmp_path / "missing", root, executor=OnRay(cluster.address), console=QUIET)


@pytest.mark.slow
@pytest.mark.usefixtures("local")
def test_a_search_on_ray_finds_what_it_finds_here(root: Path, tmp_path: Path) -> None:
    from layertune_studies.engine.ray import OnRay

    method = {"kind": "bi-directional", "search": "halving", "settings": [[1, 1], [1, 4], [2, 2], [3, 5], [5, 5]]}
    config = study(methods=[{**method, "lr": [0.01]}], budget={"unit": "steps", "amount": 16, "batch": 4})
    run_study(config, tmp_path / "ray", root, executor=OnRay("auto"), console=QUIET)
    run_study(config, tmp_path / "here", root, console=QUIET)
    files = [sorted(path.name for path in (tmp_path / part / "results").glob("bi-*")) for part in ("ray", "here")]
    assert files[0] == files[1]
    assert len(files[0]) == 5 + 1


@pytest.mark.slow
@pytest.mark.usefixtures("local")
def test_a_trial_that_no_worker_survives_is_named() -> None:
    import os

    import ray

    from layertune_studies.engine.ray import OnRay, _result

    OnRay("auto")
    lost = ray.remote(lambda: os._exit(1)).options(max_retries=0).remote()
    with pytest.raises(StudyError, match=r"flat_all was lost with its worker, .* needs more memory"):
        _result(lost, "flat_all")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_no_cluster_answers(address: str) -> None:
    from layertune_studies.engine.ray import OnRay

    with pytest.raises(StudyError, match=rf"no Ray cluster answers at {address} .*use --ray auto"):
        OnRay(address)


@pytest.mark.slow
def test_without_ray_everything_but_ray_works(root: Path, tmp_path: Path) -> None:
    config = write_study(tmp_path / "study.yaml", network={"name": "test_resnet"}, lrs=[0.01])
    without = (
        "import sys; sys.modules['ray'] = None; from layertune.cli.app import app; "
        f"app({['study', 'run', str(config), '--root', str(root), '--out', str(tmp_path / 'out')]!r} + sys.argv[1:])"
    )
    ran = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    ray = subprocess.run(
        [sys.executable, "-c", without, "--ray", "auto"], capture_output=True, text=True, check=False, timeout=300
    )
    assert ray.returncode == 2
    assert "pip install 'layertune[ray]'" in ray.stderr.splitlines()[-1]


def run_store(out: Path) -> Any:
    from layertune_studies.engine.store import StudyStore

    return StudyStore(out)

"""A study's trials on Ray: on all cores of this machine, or on many machines."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from typing import Any

import torch

from layertune.errors import LayertuneError, MissingPackageError
from layertune_studies.study_config import StudyError
from layertune_studies.study_run import Result, Workshop
from layertune_studies.study_training import passes_of_step, steps_of
from layertune_studies.study_trial import RUNGS, Trial, ranking, run_trial

try:
    import ray
except ModuleNotFoundError as error:
    raise MissingPackageError(
        "--ray needs Ray, which is not installed: pip install 'layertune[ray]'; without --ray trials run here, one "
        "after the other",
        name=error.name,
    ) from error

__all__ = ["OnRay"]

LOST = -1  # a trial outside a search, whose worker or node is lost, is run again, however often
AGAIN = 20  # Tune does not tell a lost worker from an error of the trial, which would come back for ever


class OnRay:
    """Runs trials on a Ray cluster; what a lost worker or node was at work on is run again.

    Data have to lie in the same folder on every machine, and results are written by the machine that gave the command.

    Args:
        address: of the cluster; ``"auto"`` takes the one at hand, or makes one of this machine's cores.

    Raises:
        StudyError: no cluster answers at the address.
    """

    searches = True

    def __init__(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address != "auto":
            _require_answer(address)
            ray.init(address=address, **options)
            return
        try:
            ray.init(address=address, **options)
        except ConnectionError:
            ray.init(include_dashboard=False, **options)

    def run(self, workshop: Workshop, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Give each trial with its result as it is finished, once.

        Raises:
            LayertuneError: as ``run_trial`` raises it.
        """
        weights = ray.put(workshop.weights)
        task: Any = ray.remote(_trial)
        task = task.options(max_retries=LOST, **_resources(workshop))
        waiting = {task.remote(workshop.study, trial, workshop.root, weights): trial for trial in trials}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            trial = waiting.pop(done)
            workshop.tell(trial.name(workshop.study).rpartition("_")[0], 0)
            yield trial, _result(done)

    def search(self, workshop: Workshop, trials: Sequence[Trial]) -> tuple[dict[Trial, Result], Result]:
        """Successive halving (ASHA, Li et al. 2020) over the settings of a method on one seed, with Ray Tune.

        At a sixteenth and a quarter of the steps the better quarter goes on, by the first metric on the validation
        cases, of equals by the second.

        Returns:
            The results of the trials that were finished, and ``passes`` of all trials together with ``steps`` of each.

        Raises:
            StudyError: a trial failed, or none was finished.
        """
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        study, root, weights = workshop.study, workshop.root, ray.put(workshop.weights)
        steps = steps_of(study, trials[0].method)
        scheduler = ASHAScheduler(
            time_attr="steps", max_t=steps, grace_period=max(1, steps // RUNGS[0]), reduction_factor=RUNGS[1]
        )

        def trainable(config: dict[str, Any]) -> None:
            try:
                result = _trial(study, trials[config["number"]], root, ray.get(weights), tune.report)
            except LayertuneError as error:  # it would be the same once more
                tune.report({"steps": steps, "score": 0.0, "error": str(error)})
                return
            score = ranking(study, result["validation"])
            tune.report({"steps": steps, "score": score, "result": json.dumps(result)})

        resources = _resources(workshop)
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr):
            found = tune.Tuner(
                tune.with_resources(trainable, {"cpu": resources["num_cpus"], "gpu": resources["num_gpus"]}),
                param_space={"number": tune.grid_search(list(range(len(trials))))},
                tune_config=tune.TuneConfig(metric="score", mode="max", scheduler=scheduler, reuse_actors=True),
                run_config=tune.RunConfig(
                    storage_path=folder, verbose=0, failure_config=tune.FailureConfig(max_failures=AGAIN)
                ),
            ).fit()
        metrics = [found[number].metrics or {} for number in range(len(found))]
        for number, one in enumerate(metrics):
            told = one.get("error") or found[number].error
            if told is not None:
                trial = trials[one["config"]["number"]] if "config" in one else trials[number]
                raise StudyError(f"{trial.method.name} failed at {trial.setting.label}: {str(told).splitlines()[-1]}")
        results = {
            trials[one["config"]["number"]]: json.loads(one["result"])
            for one in metrics
            if one.get("result") is not None
        }
        if not results:
            raise StudyError(f"the search for {trials[0].method.name} finished no trial; see Ray's own messages")
        taken = {trials[one["config"]["number"]].setting.label: one["steps"] for one in metrics if "steps" in one}
        passes = sum(taken.values()) * passes_of_step(trials[0].method)
        return results, {"passes": passes, "steps": taken}


def _require_answer(address: str) -> None:
    """Look whether anybody listens there: Ray itself waits for minutes, and then ends the process.

    Raises:
        StudyError: nobody does, or it is no address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=10):
            pass
    except (OSError, ValueError) as error:
        raise StudyError(
            f"no Ray cluster answers at {address} ({error}); give HOST:PORT of one that runs, or use --ray auto"
        ) from error


def _trial(study: Any, trial: Trial, root: Path | None, weights: Any, report: Any = None) -> Result:
    """What runs on a worker: the same function as here, without a progress bar."""
    if report is None:
        return run_trial(study, trial, root, weights)
    return run_trial(study, trial, root, weights, report=lambda step, score: report({"steps": step, "score": score}))


def _resources(workshop: Workshop) -> dict[str, float]:
    """Of one trial: the study's threads, and a GPU where this machine has one."""
    return {"num_cpus": workshop.study.threads, "num_gpus": 1 if torch.cuda.is_available() else 0}


def _result(done: Any) -> Result:
    """What a task gave; an error of the studies comes out as it was raised, not in Ray's wrapping."""
    try:
        result: Result = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LayertuneError):
            raise error.cause from None
        raise
    return result

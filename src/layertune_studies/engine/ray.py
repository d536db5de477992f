"""The trials of a study on Ray: on all cores of this machine, or on many machines."""

import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from layertune.errors import LayertuneError, MissingPackageError
from layertune_studies.engine.context import Result, StudyContext
from layertune_studies.engine.trial import Trial, run_trial
from layertune_studies.errors import StudyError

try:
    import ray
except ModuleNotFoundError as error:
    raise MissingPackageError(
        "--ray needs Ray, which is not installed: pip install 'layertune[ray]'; without --ray trials run here, one "
        "after the other",
        name=error.name,
    ) from error

__all__ = ["OnRay"]

LOST = 20  # times that a trial is run again after its worker or node was lost; one that takes all memory never ends


class OnRay:
    """Run trials on a Ray cluster; the trial of a lost worker or node is run again.

    The data must be in the same folder on every machine. The machine that started the command writes the results.

    Args:
        address: Address of the cluster. ``"auto"`` takes a running one, or starts one on the cores of this machine.

    Raises:
        StudyError: No cluster answers at the address.
    """

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

    def run(self, context: StudyContext, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Yield each trial with its result when it is finished, once.

        Raises:
            LayertuneError: An error of ``run_trial``.
            StudyError: The worker of a trial was lost too often.
        """
        if context.study.loop == "nnunet":
            raise StudyError("loop nnunet trains in one process on this machine; leave out --ray")
        starts = {trial.after: trial for trial in trials}
        weights = {after: ray.put(context.start(trial)) for after, trial in starts.items()}
        task: Any = ray.remote(run_trial)
        task = task.options(max_retries=LOST, **_resources(context))
        trial_of = {task.remote(context.study, trial, context.root, weights[trial.after]): trial for trial in trials}
        while trial_of:
            (done,), _ = ray.wait(list(trial_of), num_returns=1)
            trial = trial_of.pop(done)
            context.tell(trial.name(context.study).rpartition("_")[0], 0)
            yield trial, _result(done, trial.name(context.study))


def _require_answer(address: str) -> None:
    """Check that a cluster answers at an address: Ray itself would wait for minutes and then end the process.

    Raises:
        StudyError: None answers, or the address is wrong.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=10):
            pass
    except (OSError, ValueError) as error:
        raise StudyError(
            f"no Ray cluster answers at {address} ({error}); give HOST:PORT of one that runs, or use --ray auto"
        ) from error


def _resources(context: StudyContext) -> dict[str, float]:
    """Return the resources of a trial: the study's threads, and a GPU if this machine has one."""
    return {"num_cpus": context.study.threads, "num_gpus": 1 if torch.cuda.is_available() else 0}


def _result(done: Any, name: str) -> Result:
    """Return the result of a task; an error of layertune is raised as it is, without Ray's wrapping."""
    try:
        result: Result = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LayertuneError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise StudyError(
            f"{name} was lost with its worker, {LOST + 1} times; most likely it needs more memory than there is "
            f"({str(error).splitlines()[0]})"
        ) from error
    return result

"""``layertune study run``: run all trials of a study that are not finished yet."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from layertune_studies.config.study import Study
from layertune_studies.data.cases import draw
from layertune_studies.engine.context import Executor, Result, StudyContext
from layertune_studies.engine.progress import Meter, study_progress
from layertune_studies.engine.search import better, is_searched, plan, rounds
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import Trial, depth_of, run_trial
from layertune_studies.training.pretraining import reserved_cases
from layertune_studies.training.settings import policy_of

__all__ = ["InThisProcess", "run_study"]


def run_study(
    study: Study, out: Path, root: Path | None, *, executor: Executor | None = None, console: Console | None = None
) -> StudyStore:
    """Run a study, or continue it.

    Args:
        study: The study, as ``load_study`` returns it.
        out: The folder of results. A trial whose result is there is not run again.
        root: The folder of all data.
        executor: Runs the trials; by default in this process, one after the other.
        console: Shows the progress; by default on stderr.

    Returns:
        The store with the results.

    Raises:
        DataError: Data or weights are not there, or cannot be used.
        FolderError: Another run of the study is working, the folder cannot be used, or the disk is full.
        SystemExit: The run was interrupted by Ctrl-C; the exit code is 130.
    """
    console = console or Console(stderr=True)
    executor = executor or InThisProcess()
    store = StudyStore(out)
    threads = torch.get_num_threads()
    try:
        with store.locked(), study_progress(console) as progress:
            meter = Meter(progress)
            parts = StudyContext(study, root, store, meter).parts().values()
            for part in parts:
                _require_fitting(part)
                _expect(part, meter)
            for part in parts:
                _run(part, executor, meter)
    except KeyboardInterrupt:
        line = f"Interrupted. What is finished lies in {out}; the same command goes on from there."
        console.print(line, soft_wrap=True)
        raise SystemExit(130) from None
    finally:
        torch.set_num_threads(threads)
    return store


def _run(context: StudyContext, executor: Executor, meter: Meter) -> None:
    searched, plain = _parted(context.trials)
    context.pretrain()  # before any trial, and where weights are missing, before any work
    first = [one for one in plain if one.method.after is None]
    stages = (
        [one for one in first if one.lr is not None],
        [one for one in first if one.lr is None],
        [one for one in plain if one.method.after is not None],
    )
    for stage in stages:
        _run_stage(context, executor, meter, context.ready(stage))
    _search(context, executor, meter, [context.ready(trials) for trials in _groups(searched)])


def _expect(context: StudyContext, meter: Meter) -> None:
    study, (searched, plain) = context.study, _parted(context.trials)
    meter.expect(study, plain)
    for trials in _groups(searched):
        for part, count in rounds(study, trials[0].method, len(trials)):
            meter.expect(part, trials[:count])  # so many go on; which ones, nobody knows yet


def _require_fitting(context: StudyContext) -> None:
    """Find settings and numbers of cases that do not fit before anything is trained.

    Raises:
        DataError: There are fewer labelled cases than are asked for.
        PolicyError: A setting does not fit the network.
    """
    study = context.study
    if study.pretraining.weights is not None:
        _ = context.weights
    for labelled in study.data.labelled:
        draw(
            context.cases,
            labelled,
            seed=study.seeds - 1,
            reserved=reserved_cases(study),
            holdout=study.data.holdout,
            disjoint=study.data.draw == "disjoint",
        )
    for method, setting in {(trial.method, trial.setting): None for trial in context.trials}:
        policy_of(setting)(context.layers_with(depth_of(study, method)))


def _run_stage(context: StudyContext, executor: Executor, meter: Meter, trials: Sequence[Trial]) -> None:
    """Run the trials that are not finished yet."""
    # Two methods may share a trial: a flat rate of the grid, and the same one by itself.
    named = {trial.name(context.study): trial for trial in trials}
    missing = [trial for name, trial in named.items() if not context.holds(name)]
    left_out = list(trials)
    for trial in missing:
        left_out.remove(trial)
    meter.leave_out(context.study, left_out)
    for trial, result in executor.run(context, missing):
        context.store.save(trial.name(context.study), result)
        meter.finish(context.study, trial)


def _search(context: StudyContext, executor: Executor, meter: Meter, groups: Sequence[Sequence[Trial]]) -> None:
    """Find the best setting of each group, round by round; all groups with the same rounds run together."""
    by_plan: dict[Any, list[Sequence[Trial]]] = {}
    for trials in groups:
        by_plan.setdefault(plan(trials[0].method, len(trials)), []).append(trials)
    for alike in by_plan.values():
        left: list[Sequence[Trial]] = alike
        part = None
        for study, count in rounds(context.study, alike[0][0].method, len(alike[0])):
            if part is not None:
                left = [better(part.study, part.results(trials), count) for trials in left]
            part = StudyContext(study, context.root, context.store, context.tell)
            _run_stage(part, executor, meter, [trial for trials in left for trial in trials])


def _parted(trials: Iterable[Trial]) -> tuple[list[Trial], list[Trial]]:
    searched: list[Trial] = []
    plain: list[Trial] = []
    for trial in trials:
        (searched if is_searched(trial.method) else plain).append(trial)
    return searched, plain


def _groups(trials: Iterable[Trial]) -> list[list[Trial]]:
    groups: dict[Any, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.group, []).append(trial)
    return list(groups.values())


class InThisProcess:
    """Run trials in this process, one after the other."""

    def run(self, context: StudyContext, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Yield each trial with its result when it is finished."""
        for trial in trials:
            title = trial.name(context.study).rpartition("_")[0]

            def tell(step: int, title: str = title) -> None:
                context.tell(title, step)

            yield trial, run_trial(context.study, trial, context.root, context.start(trial), tell)

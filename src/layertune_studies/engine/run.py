"""`layertune study run`: all trials of a study, those that are there left as they are."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor

from layertune import LayerMap
from layertune_studies.config.methods import Flat
from layertune_studies.config.study import Study, StudyError
from layertune_studies.data.cases import Cases, draw
from layertune_studies.engine.progress import Meter, study_progress
from layertune_studies.engine.search import better, is_searched, rounds, survivors
from layertune_studies.engine.store import StudyStore
from layertune_studies.engine.trial import (
    Trial,
    all_trials,
    data_identity,
    ranking,
    run_trial,
    study_cases,
    study_layers,
)
from layertune_studies.training.metrics import CLASSIFICATION, SEGMENTATION
from layertune_studies.training.pretraining import pretrain, reserved_cases
from layertune_studies.training.settings import Depths, policy_of

__all__ = ["Executor", "Here", "Workshop", "best_of", "run_study"]

Result = dict[str, Any]


class Executor(Protocol):
    """Runs trials in any order, on this machine or on many."""

    def run(self, workshop: "Workshop", trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Give each trial with its result as it is finished, once."""
        ...


class Workshop:
    """A study with its data, network and folder.

    Args:
        study: as its file says.
        root: the folder of all data.
        store: for results.
        tell: told (what runs, its number in the run, steps done in it).
    """

    def __init__(
        self, study: Study, root: Path | None, store: StudyStore, tell: Callable[[str, int], object] = lambda *_: None
    ) -> None:
        self.study = study
        self.root = root
        self.store = store
        self.tell = tell

    @cached_property
    def cases(self) -> Cases:
        """All cases; each is read, and checked, when it is asked for.

        Raises:
            StudyError: a metric is asked for that the task has not.
        """
        cases = study_cases(self.study, self.root)
        known = CLASSIFICATION if cases.task == "classification" else SEGMENTATION
        extra = [f"sensitivity_{number}" for number in range(cases.classes)] if known is CLASSIFICATION else []
        unknown = [metric for metric in self.study.metrics if metric not in (*known, *extra)]
        if unknown:
            raise StudyError(f"metrics: {unknown[0]} is none of {', '.join((*known, *extra))}, which {cases.task} has")
        return cases

    @cached_property
    def layers(self) -> LayerMap:
        """The network's layers."""
        return study_layers(self.study, self.cases)

    @cached_property
    def depths(self) -> Depths:
        """How deep the network is; kept in the folder, so that tables need neither data nor network."""
        name = f"network_{_digest(self.study.model_dump_json(include={'network', 'data'}))}"
        held = self.store.load(name)
        if held is None:
            held = asdict(Depths.of(self.layers))
            self.store.save(name, held)
        return Depths(**held)

    @cached_property
    def weights(self) -> Mapping[str, Tensor] | None:
        """What trials start from; made once, and kept in the folder where it was made here."""
        if self.study.pretraining.task is None:
            return pretrain(self.study, self.cases, self.root, lambda _: None)
        parts = self.study.model_dump(mode="json", include={"network", "pretraining"})
        parts["data"] = data_identity(self.study.data, "holdout", "validation", "test")
        name = f"pretraining_{_digest(json.dumps(parts, sort_keys=True))}"
        held: Mapping[str, Tensor] | None = self.store.load_tensors(name)
        if held is None:
            held = pretrain(self.study, self.cases, self.root, lambda step: self.tell("pre-training", step))
            self.store.save_tensors(name, held)
        return held

    @cached_property
    def trials(self) -> list[Trial]:
        """All trials; those that wait for a tuned rate have none."""
        return all_trials(self.study, self.depths)

    def result(self, trial: Trial) -> Result | None:
        """What is known of a trial."""
        return None if trial.lr is None else self.store.load(trial.name(self.study))

    def results(self, trials: Iterable[Trial]) -> dict[Trial, Result]:
        """What is known of trials; those that are not finished are left out."""
        return {trial: result for trial in trials if (result := self.result(trial)) is not None}

    def holds(self, name: str) -> bool:
        """Whether all that the study keeps of a trial is there, its network too where networks are kept."""
        kept = not self.study.keep_networks or self.store.tensors(name).is_file()
        return kept and self.store.load(name) is not None

    def found(self, trials: Sequence[Trial]) -> tuple[dict[Trial, Result], float] | None:
        """What a search among trials has come to: results of those that had the whole budget, and all its passes.

        ``None`` while it is not finished.
        """
        passes: dict[str, float] = {}
        results: dict[Trial, Result] = {}
        for study in rounds(self.study):
            trials = better(study, results) if results else trials
            results = Workshop(study, self.root, self.store).results(trials)
            if len(results) < len(trials):
                return None
            passes |= {trial.name(study): float(result["passes"]) for trial, result in results.items()}
        return results, sum(passes.values())

    def ready(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of the trials whose rate is known."""
        return [tuned for trial in trials if (tuned := self.tuned(trial)) is not None]

    def tuned(self, trial: Trial) -> Trial | None:
        """The trial at the rate that the flat method chose on its seed; ``None`` while that is not known."""
        if trial.lr is not None:
            return trial
        flat = next(method for method in self.study.methods if isinstance(method, Flat) and method.lr != "tuned")
        rivals = [one for one in self.trials if one.group == (flat.name, trial.labelled, trial.seed)]
        found = {one: self.result(one) for one in rivals}
        if not all(found.values()):
            return None
        best = best_of(self.study, {one: result for one, result in found.items() if result is not None})
        return replace(trial, lr=best.lr)


def best_of(study: Study, results: Mapping[Trial, Result]) -> Trial:
    """The trial that the validation cases choose: by the study's first metric, of equals by its second."""
    return max(results, key=lambda trial: ranking(study, results[trial]["validation"]))


def run_study(
    study: Study, out: Path, root: Path | None, *, executor: Executor | None = None, console: Console | None = None
) -> StudyStore:
    """Run a study, or go on with it.

    Args:
        study: as its file says.
        out: folder for results; a trial whose result lies there is not run again.
        root: the folder of all data.
        executor: where trials run; by default here, one after the other.
        console: for progress; by default the standard error stream.

    Returns:
        Where the results are.

    Raises:
        DataError: data or weights are not there, or cannot be used.
        FolderError: another run of the study is at work, or the folder cannot be used; a full disk.
        SystemExit: with code 130, interrupted by Ctrl-C.
    """
    console = console or Console(stderr=True)
    executor = executor or Here()
    store = StudyStore(out)
    threads = torch.get_num_threads()
    try:
        with store.locked(), study_progress(console) as progress:
            meter = Meter(progress)
            workshop = Workshop(study, root, store, meter)
            _run(workshop, executor, meter)
    except KeyboardInterrupt:
        line = f"Interrupted. What is finished lies in {out}; the same command goes on from there."
        console.print(line, soft_wrap=True)
        raise SystemExit(130) from None
    finally:
        torch.set_num_threads(threads)
    return store


def _run(workshop: Workshop, executor: Executor, meter: Meter) -> None:
    searched, plain = _parted(workshop.trials)
    groups = _groups(searched)
    _expect(workshop.study, meter, plain, groups)
    _require_fitting(workshop)
    _ = workshop.weights  # before any trial, and where they are missing, before any work
    for stage in ([one for one in plain if one.lr is not None], [one for one in plain if one.lr is None]):
        _run_stage(workshop, executor, meter, workshop.ready(stage))
    _search(workshop, executor, meter, [workshop.ready(trials) for trials in groups])


def _expect(study: Study, meter: Meter, plain: Sequence[Trial], groups: Sequence[Sequence[Trial]]) -> None:
    meter.expect(study, plain)
    for part in rounds(study):
        meter.expect(part, [trial for trials in groups for trial in trials])
        groups = [trials[: survivors(len(trials))] for trials in groups]  # so many go on; which ones, nobody knows yet


def _require_fitting(workshop: Workshop) -> None:
    """Find what cannot be trained or drawn before anything is.

    Raises:
        DataError: there are not as many labelled cases as are asked for.
        PolicyError: a setting does not fit the network.
    """
    study = workshop.study
    for labelled in study.data.labelled:
        draw(workshop.cases, labelled, seed=0, reserved=reserved_cases(study), holdout=study.data.holdout)
    for setting in {trial.setting: None for trial in workshop.trials}:
        policy_of(setting)(workshop.layers)


def _run_stage(workshop: Workshop, executor: Executor, meter: Meter, trials: Sequence[Trial]) -> None:
    """Run what is not there yet."""
    # Two methods may share a trial: a flat rate of the grid, and the same one by itself.
    named = {trial.name(workshop.study): trial for trial in trials}
    missing = [trial for name, trial in named.items() if not workshop.holds(name)]
    left_out = list(trials)
    for trial in missing:
        left_out.remove(trial)
    meter.leave_out(workshop.study, left_out)
    for trial, result in executor.run(workshop, missing):
        workshop.store.save(trial.name(workshop.study), result)
        meter.finish(workshop.study, trial)


def _search(workshop: Workshop, executor: Executor, meter: Meter, groups: Sequence[Sequence[Trial]]) -> None:
    """Find the best setting of each group, round by round; all groups of a round together keep many machines busy."""
    for study in rounds(workshop.study):
        part = Workshop(study, workshop.root, workshop.store, workshop.tell)
        _run_stage(part, executor, meter, [trial for trials in groups for trial in trials])
        groups = [better(study, part.results(trials)) for trials in groups]


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


class Here:
    """Runs trials in this process, one after the other."""

    def run(self, workshop: Workshop, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Give each trial with its result as it is finished."""
        for trial in trials:
            title = trial.name(workshop.study).rpartition("_")[0]

            def tell(step: int, title: str = title) -> None:
                workshop.tell(title, step)

            yield trial, run_trial(workshop.study, trial, workshop.root, workshop.weights, tell)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]

"""`layertune study table`: medians over seeds with intervals, and tests against the best baseline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layertune_studies.config.study import Study
from layertune_studies.engine.context import StudyContext, best_of
from layertune_studies.engine.search import is_searched
from layertune_studies.engine.trial import Trial
from layertune_studies.errors import StudyError
from layertune_studies.results.statistics import p_value

__all__ = ["Chosen", "Row", "chosen_trials", "make_rows", "rows_by_start", "start_rows"]


@dataclass(frozen=True)
class Chosen:
    """What a method came to on one seed.

    Attributes:
        trial: the one that the validation cases chose.
        result: its result.
        passes: forward and backward passes of all trials that were tried.
    """

    trial: Trial
    result: Mapping[str, Any]
    passes: float


@dataclass(frozen=True)
class Row:
    """A method at one number of labelled cases.

    Attributes:
        method: its name.
        labelled: cases.
        values: of each metric, one a seed.
        seeds: that are finished, which the values are of.
        settings: what was chosen, one a seed.
        passes: of one seed with all settings that were tried, the mean; what the tuned rate cost is flat's.
        p: of the first metric against the best baseline; ``None`` for that baseline, with fewer than two seeds, or with
            others than that baseline's.
    """

    method: str
    labelled: int | str
    values: Mapping[str, Sequence[float]]
    settings: tuple[str, ...] = ()
    passes: float = 0.0
    p: float | None = None
    seeds: tuple[int, ...] = ()


def chosen_trials(context: StudyContext) -> dict[tuple[str, int | str], list[Chosen]]:
    """For each method and number of labelled cases the chosen trial of each seed that is finished.

    Raises:
        StudyError: nothing is finished.
    """
    groups: dict[tuple[str, int | str, int], list[Trial]] = {}
    for trial in context.trials:
        groups.setdefault(trial.group, []).append(trial)
    found: dict[tuple[str, int | str], list[Chosen]] = {}
    order = [method.name for method in context.study.methods]
    for (method, labelled, _), trials in sorted(groups.items(), key=lambda pair: order.index(pair[0][0])):
        one = _chosen(context, trials)
        if one is not None:
            found.setdefault((method, labelled), []).append(one)
    if not found:
        raise StudyError(f"no trial of {context.study.name} is finished; run it with `layertune study run` first")
    return found


def _chosen(context: StudyContext, trials: Sequence[Trial]) -> Chosen | None:
    """The best of a method's trials on one seed, once all are there or their search is finished."""
    ready = context.ready(trials)
    if len(ready) < len(trials):
        return None
    if is_searched(ready[0].method):
        found = context.found(ready)
        if found is None:
            return None
        # Another method of the study may have trained what the search gave up: that is not its finding.
        results, passes = found
    else:
        results = context.results(ready)
        if len(results) < len(ready):
            return None
        passes = sum(float(result["passes"]) for result in results.values())
    best = best_of(context.study, results)
    return Chosen(best, results[best], passes)


def make_rows(study: Study, chosen: Mapping[tuple[str, int | str], Sequence[Chosen]]) -> list[Row]:
    """One row for each method and number of labelled cases, with its test against the best baseline there."""
    baselines = set(study.compare or (method.name for method in study.methods if not method.learns))
    metric, rows = study.metrics[0], []
    for (method, labelled), ones in chosen.items():
        values = {name: [float(one.result[study.report][name]) for one in ones] for name in study.metrics}
        settings = tuple(_setting(one.trial) for one in ones)
        passes, seeds = float(np.mean([one.passes for one in ones])), tuple(one.trial.seed for one in ones)
        rows.append(Row(method, labelled, values, settings, passes, seeds=seeds))
    return [_tested(row, rows, baselines, metric) for row in rows]


def is_whole(study: Study, rows: Sequence[Row]) -> bool:
    """Whether every method is there, at every number of labelled cases, with all its seeds."""
    shown = {(row.method, row.labelled) for row in rows if len(row.seeds) == study.seeds}
    return len(shown) == len(study.methods) * len(study.data.labelled)


def rows_by_start(context: StudyContext) -> dict[tuple[str, int | str], dict[float, Row]]:
    """For each method that starts from several rates, and each number of labelled cases, a row by rate.

    Seeds count that are finished at every rate. Of several settings the one that is best on the validation cases is
    shown; methods that search theirs are left out, since what they gave up is not known to the end.
    """
    found: dict[tuple[str, int | str], dict[float, Row]] = {}
    for (method, labelled), by_rate in _trials_by_start(context.trials).items():
        results = {
            lr: {seed: context.results(trials) for seed, trials in seeds.items()} for lr, seeds in by_rate.items()
        }
        whole = [
            seed
            for seed in range(context.study.seeds)
            if all(len(results[lr][seed]) == len(seeds[seed]) for lr, seeds in by_rate.items())
        ]
        if len(by_rate) > 1 and whole:
            found[method, labelled] = {
                lr: _start_row(
                    context.study, f"{method}, from {lr:g}", labelled, {seed: results[lr][seed] for seed in whole}
                )
                for lr in sorted(by_rate)
            }
    return found


def start_rows(context: StudyContext) -> list[Row]:
    """The rows of ``rows_by_start``, and for each method its worst and its best rate."""
    rows: list[Row] = []
    for (method, _), by_rate in rows_by_start(context).items():
        own = list(by_rate.values())
        ranked = sorted(own, key=lambda row: float(np.median(row.values[context.study.metrics[0]])))
        ends = ((f"{method}, worst", ranked[0]), (f"{method}, best", ranked[-1]))
        rows += [*own, *(replace(row, method=title, settings=(row.method,)) for title, row in ends)]
    return rows


def _trials_by_start(
    trials: Iterable[Trial],
) -> dict[tuple[str, int | str], dict[float, dict[int, list[Trial]]]]:
    groups: dict[tuple[str, int | str], dict[float, dict[int, list[Trial]]]] = {}
    for trial in trials:
        if trial.lr is not None and not is_searched(trial.method):
            by_rate = groups.setdefault((trial.method.name, trial.labelled), {})
            by_rate.setdefault(trial.lr, {}).setdefault(trial.seed, []).append(trial)
    return groups


def _start_row(study: Study, title: str, labelled: int | str, seeds: Mapping[int, Mapping[Trial, Any]]) -> Row:
    best = [results[best_of(study, results)] for results in seeds.values()]
    values = {name: [float(one[study.report][name]) for one in best] for name in study.metrics}
    return Row(title, labelled, values, seeds=tuple(seeds))


def _tested(row: Row, rows: Iterable[Row], baselines: set[str], metric: str) -> Row:
    rivals = [one for one in rows if one.labelled == row.labelled and one.method in baselines]
    if not rivals:
        return row
    best = max(rivals, key=lambda one: float(np.median(one.values[metric])))
    paired = best.seeds == row.seeds and len(row.seeds) > 1
    p = p_value(row.values[metric], best.values[metric]) if paired and best is not row else None
    return replace(row, p=p)


def _setting(trial: Trial) -> str:
    return f"{trial.setting.label} at {trial.lr:g}"

"""`layertune study table`: medians over seeds with intervals, and tests against the best baseline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from layertune_studies.config.methods import LayerMethod
from layertune_studies.config.study import Study
from layertune_studies.engine.context import StudyContext, best_of
from layertune_studies.engine.search import is_searched
from layertune_studies.engine.trial import Trial
from layertune_studies.errors import StudyError
from layertune_studies.results.statistics import p_value

__all__ = [
    "ChosenTrial",
    "Row",
    "RowKey",
    "chosen_trials",
    "is_whole",
    "labelled_of",
    "make_rows",
    "rows_by_start",
    "setting_of",
    "start_rows",
]


class RowKey(NamedTuple):
    """What a row of a table is about.

    Attributes:
        method: The name of the method.
        labelled: The number of labelled cases, or ``"all"``.
        checkpoint: The name of the checkpoint that the method starts from; empty if the study has only one.
    """

    method: str
    labelled: int | str
    checkpoint: str = ""

    @property
    def label(self) -> str:
        """The method with its checkpoint, if the study has several."""
        return f"{self.method}, {self.checkpoint}" if self.checkpoint else self.method


@dataclass(frozen=True)
class ChosenTrial:
    """The result of a method on one seed.

    Attributes:
        trial: The trial that was chosen by the validation cases.
        result: The result of that trial.
        passes: Forward and backward passes of all trials that the method tried.
        context: The part of the study that the trial belongs to, with one checkpoint.
    """

    trial: Trial
    result: Mapping[str, Any]
    passes: float
    context: StudyContext


Results = Mapping[RowKey, Sequence[ChosenTrial]]


@dataclass(frozen=True)
class Row:
    """A row of the table: a method at one number of labelled cases.

    Attributes:
        method: The name of the method.
        labelled: The number of labelled cases, or ``"all"``.
        values: For each metric, the score of each seed, in [0, 1].
        settings: The setting that was chosen on each seed.
        passes: Forward and backward passes of one seed with all settings that were tried, the mean over seeds. What
            finding the tuned rate cost is counted in the row of ``flat``.
        p: The p-value of the first metric against the best baseline. None for that baseline itself, with fewer than two
            seeds, or with other seeds than those of the baseline.
        seeds: The seeds that are finished, which the values belong to.
        checkpoint: The checkpoint that the method starts from; empty if the study has only one.
    """

    method: str
    labelled: int | str
    values: Mapping[str, Sequence[float]]
    settings: tuple[str, ...] = ()
    passes: float = 0.0
    p: float | None = None
    seeds: tuple[int, ...] = ()
    checkpoint: str = ""


def chosen_trials(context: StudyContext) -> dict[RowKey, list[ChosenTrial]]:
    """Return the chosen trial of each seed that is finished, for each row of the table.

    Raises:
        StudyError: Nothing is finished.
    """
    by_row = {
        RowKey(method, labelled, checkpoint): trials
        for checkpoint, part in context.parts().items()
        for (method, labelled), trials in _rows_of_part(part).items()
    }
    if not by_row:
        raise StudyError(f"no trial of {context.study.name} is finished; run it with `layertune study run` first")
    return by_row


def _rows_of_part(context: StudyContext) -> dict[tuple[str, int | str], list[ChosenTrial]]:
    groups: dict[tuple[str, int | str, int], list[Trial]] = {}
    for trial in context.trials:
        groups.setdefault(trial.group, []).append(trial)
    by_row: dict[tuple[str, int | str], list[ChosenTrial]] = {}
    order = [method.name for method in context.study.methods]
    for (method, labelled, _), trials in sorted(groups.items(), key=lambda pair: order.index(pair[0][0])):
        one = _best_trial(context, trials)
        if one is not None:
            by_row.setdefault((method, labelled), []).append(one)
    return by_row


def _best_trial(context: StudyContext, trials: Sequence[Trial]) -> ChosenTrial | None:
    """Return the best of a method's trials on one seed, once all of them or their search are finished."""
    ready = context.ready(trials)
    if len(ready) < len(trials):
        return None
    if is_searched(ready[0].method):
        outcome = context.found(ready)
        if outcome is None:
            return None
        # Another method of the study may have trained settings that the search dropped; they are not results of it.
        results, passes = outcome
    else:
        results = context.results(ready)
        if len(results) < len(ready):
            return None
        passes = sum(float(result["passes"]) for result in results.values())
    best = best_of(context.study, results)
    return ChosenTrial(best, results[best], passes, context)


def labelled_of(study: Study, labelled: int | str | None) -> int | str:
    """Return a number of labelled cases of a study, by default its first one.

    Raises:
        StudyError: The study has no such number.
    """
    counts = study.data.labelled
    if labelled is not None and labelled not in counts:
        raise StudyError(f"{labelled} is no number of labelled cases of this study: {', '.join(map(str, counts))}")
    return counts[0] if labelled is None else labelled


def make_rows(study: Study, chosen: Results) -> list[Row]:
    """Make the rows of the table, each with its test against the best baseline at its number of labelled cases."""
    baselines = set(study.compare or (method.name for method in study.methods if not method.learns))
    rows = [_row(study, key, trials) for key, trials in chosen.items()]
    return [_tested(row, rows, baselines, study.metrics[0]) for row in rows]


def _row(study: Study, key: RowKey, trials: Sequence[ChosenTrial]) -> Row:
    return Row(
        key.method,
        key.labelled,
        {name: [float(one.result[study.report][name]) for one in trials] for name in study.metrics},
        tuple(setting_of(one.trial) for one in trials),
        float(np.mean([one.passes for one in trials])),
        seeds=tuple(one.trial.seed for one in trials),
        checkpoint=key.checkpoint,
    )


def setting_of(trial: Trial) -> str:
    """Return the setting of a trial and its rate, for a reader."""
    learned = isinstance(trial.method, LayerMethod) and trial.method.learns
    return f"{trial.setting.label} at {'a learned rate' if learned else f'{trial.lr:g}'}"


def is_whole(context: StudyContext, rows: Sequence[Row]) -> bool:
    """Return whether every method is finished with all seeds, at every number of labelled cases and checkpoint."""
    whole = {(row.method, row.labelled, row.checkpoint) for row in rows if len(row.seeds) == context.study.seeds}
    methods = sum(len(part.study.methods) for part in context.parts().values())
    return len(whole) == methods * len(context.study.data.labelled)


def rows_by_start(context: StudyContext) -> dict[RowKey, dict[float, Row]]:
    """Return the rows of each method by the rate that it starts from, for methods that start from several rates.

    Only seeds that are finished at every rate count. Of several settings the one that is best on the validation cases
    is shown. Methods that search their settings are left out, since what they gave up was not trained to the end.
    """
    by_row: dict[RowKey, dict[float, Row]] = {}
    for checkpoint, part in context.parts().items():
        for (method, labelled), by_rate in _trials_by_start(part.trials).items():
            results = {
                lr: {seed: part.results(trials) for seed, trials in seeds.items()} for lr, seeds in by_rate.items()
            }
            whole = [
                seed
                for seed in range(part.study.seeds)
                if all(len(results[lr][seed]) == len(seeds[seed]) for lr, seeds in by_rate.items())
            ]
            if len(by_rate) > 1 and whole:
                key = RowKey(method, labelled, checkpoint)
                by_row[key] = {
                    lr: _start_row(part.study, key, lr, {seed: results[lr][seed] for seed in whole})
                    for lr in sorted(by_rate)
                }
    return by_row


def start_rows(context: StudyContext) -> list[Row]:
    """Return the rows of ``rows_by_start``, and for each method its worst and its best rate."""
    rows: list[Row] = []
    for key, by_rate in rows_by_start(context).items():
        own = list(by_rate.values())
        ranked = sorted(own, key=lambda row: float(np.median(row.values[context.study.metrics[0]])))
        ends = ((f"{key.method}, worst", ranked[0]), (f"{key.method}, best", ranked[-1]))
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


def _start_row(study: Study, key: RowKey, lr: float, seeds: Mapping[int, Mapping[Trial, Any]]) -> Row:
    best = [results[best_of(study, results)] for results in seeds.values()]
    values = {name: [float(one[study.report][name]) for one in best] for name in study.metrics}
    title = f"{key.method}, from {lr:g}"
    return Row(title, key.labelled, values, seeds=tuple(seeds), checkpoint=key.checkpoint)


def _tested(row: Row, rows: Iterable[Row], baselines: set[str], metric: str) -> Row:
    rivals = [one for one in rows if one.labelled == row.labelled and one.method in baselines]
    if not rivals:
        return row
    best = max(rivals, key=lambda one: float(np.median(one.values[metric])))
    paired = best.seeds == row.seeds and len(row.seeds) > 1
    p = p_value(row.values[metric], best.values[metric]) if paired and best is not row else None
    return replace(row, p=p)

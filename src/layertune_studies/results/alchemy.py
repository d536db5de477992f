"""Network Alchemy's tables and figures of a study: gammas, the clip test, and the ranking of checkpoints."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean, median

import torch
from matplotlib.figure import Figure
from torch import Tensor

from layertune import clip_test, gammas, rank_correlation
from layertune.alchemy.clip_test import ClipPoint, ClipTest
from layertune.plots import plot_clip_test, plot_gammas, plot_gammas_by_layer, plot_rank_correlation
from layertune_studies.config.clip_test import ClipTestSection
from layertune_studies.config.methods import AlchemyMethod, Flat, NormOnly
from layertune_studies.engine.context import StudyContext
from layertune_studies.errors import StudyError
from layertune_studies.results.table import ChosenTrial, RowKey, chosen_trials
from layertune_studies.training.metrics import evaluate
from layertune_studies.training.network import adopt_weights, make_network

__all__ = ["ALCHEMY_FIGURES", "ALCHEMY_TABLES"]

LIMITS = (0.05, 0.2, 0.5)  # gammas are counted below these
TITLE = 9  # points
Cells = list[list[str]]
Count = int | str
BySeed = dict[int, dict[str, ChosenTrial]]  # the checkpoints of each seed


def gamma_cells(context: StudyContext, labelled: Count) -> Cells:
    """Return a table of how small the gammas of the trained networks are, and how many kernels started afresh."""
    cells = [["method", "checkpoint", *(f"share of |γ| < {limit:g}" for limit in LIMITS), "fresh kernels"]]
    for key, trials in _rows(context, labelled).items():
        sizes = [torch.cat([gamma.flatten().abs() for gamma in _gammas_of(one).values()]) for one in trials]
        shares = [_by_seed([(size < limit).double().mean().item() for size in sizes]) for limit in LIMITS]
        fresh = [str(one.result["redundant"]) for one in trials if one.result.get("redundant") is not None]
        cells.append([key.method, key.checkpoint, *shares, ", ".join(fresh)])
    return cells


def clip_cells(context: StudyContext, labelled: Count) -> Cells:
    """Return a table of the clip test: the score with the smallest gammas at 0, and with as many random ones at 0."""
    cells = [["method", "checkpoint", "clipped", "before", "small γ clipped", "random γ clipped"]]
    for key, trials in _clipped_rows(context, labelled).items():
        tests = [_clip_test(one) for one in trials]
        before = _by_seed([test.baseline for test in tests])
        for points in zip(*(test.points for test in tests), strict=True):
            small = _by_seed([point.metric for point in points])
            random = _by_seed([fmean(point.random) for point in points])
            cells.append([key.method, key.checkpoint, f"{points[0].share:.0%}", before, small, random])
    return cells


def rank_cells(context: StudyContext, labelled: Count) -> Cells:
    """Return a table of how each norm-only method orders the checkpoints, beside the order by the flat rate."""
    cells = [["method", "seed", "ranked", "fine-tuned", "same best two", "Spearman's ρ", "seconds"]]
    for method, (short, full) in _contests(context, labelled).items():
        for seed in short:
            scores = [{name: _score(one) for name, one in found[seed].items()} for found in (short, full)]
            orders = [sorted(values, key=values.__getitem__, reverse=True) for values in scores]
            rho = rank_correlation(*([values[name] for name in full[seed]] for values in scores))
            seconds = [sum(one.result["seconds"] for one in found[seed].values()) for found in (short, full)]
            same = "yes" if set(orders[0][:2]) == set(orders[1][:2]) else "no"
            texts = ["; ".join(order) for order in orders]
            cells.append([method, str(seed), *texts, same, f"{rho:.2f}", f"{seconds[0]:.0f} of {seconds[1]:.0f}"])
    return cells


def gamma_figure(context: StudyContext, labelled: Count) -> Figure:
    """Draw the gammas of each checkpoint before and after norm-only training (Network Alchemy, fig. 3.2)."""
    trained: dict[str, ChosenTrial] = {}
    for key, trials in _rows(context, labelled).items():
        if _is(trials, NormOnly):
            trained.setdefault(key.checkpoint, trials[0])
    _require(trained, "a method of kind norm-only")
    figure = Figure(figsize=(3.4 * len(trained), 5.2), layout="constrained")
    axes = figure.subplots(2, len(trained), sharex="row", sharey="row", squeeze=False)
    for column, (name, one) in enumerate(trained.items()):
        moments = {"before": _gammas_before(one), "after": _gammas_of(one)}
        title = f"{name}, norms alone trained" if name else "norms alone trained"
        plot_gammas(moments, ax=axes[0, column]).set_title(title, fontsize=TITLE)
        plot_gammas_by_layer(moments, ax=axes[1, column])
    return figure


def gamma_after_figure(context: StudyContext, labelled: Count) -> Figure:
    """Draw the gammas after norm-only training, and after training without and with Network Alchemy (fig. 4.1)."""
    rows = _rows(context, labelled)
    alchemy = [(key, trials[0]) for key, trials in rows.items() if _is(trials, AlchemyMethod)]
    _require(alchemy, "a method of kind alchemy")
    key, last = alchemy[-1]
    others = {
        kind: next(
            (trials[0] for other, trials in rows.items() if other.checkpoint == key.checkpoint and _is(trials, kind)),
            None,
        )
        for kind in (NormOnly, Flat)
    }
    shown = {one.trial.method.name: _gammas_of(one) for one in (*others.values(), last) if one is not None}
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_gammas(shown, ax=left)
    plot_gammas_by_layer(shown, ax=right)
    return figure


def clip_figure(context: StudyContext, labelled: Count) -> Figure:
    """Draw the clip test of the first seed for each method and checkpoint (Network Alchemy, fig. 3.1)."""
    rows = _clipped_rows(context, labelled)
    columns = max(sum(key.method == method for key in rows) for method in {key.method for key in rows})
    figure = Figure(figsize=(3.4 * columns, 2.6 * -(-len(rows) // columns)), layout="constrained")
    for number, (key, trials) in enumerate(rows.items(), 1):
        axes = figure.add_subplot(-(-len(rows) // columns), columns, number)
        plot_clip_test(_clip_test(trials[0]), metric=context.study.metrics[0], ax=axes)
        axes.set_title(key.label, fontsize=TITLE)
    return figure


def rank_figure(context: StudyContext, labelled: Count) -> Figure:
    """Draw the scores of each norm-only method against those of the flat rate, medians over seeds (sec. 4.4)."""
    contests = _contests(context, labelled)
    _require(contests, "a method of kind norm-only with several checkpoints")
    figure = Figure(figsize=(3.6 * len(contests), 2.8), layout="constrained")
    all_axes = figure.subplots(1, len(contests), sharey=True, squeeze=False)
    metric = context.study.metrics[0]
    for axes, (method, both) in zip(all_axes[0], contests.items(), strict=True):
        names = next(iter(both[1].values()))
        short, full = (
            {name: median(_score(seed[name]) for seed in found.values()) for name in names} for found in both
        )
        plot_rank_correlation(short, full, metric=metric, ax=axes).set_xlabel(f"{metric}, {method}", fontsize=8)
    return figure


ALCHEMY_TABLES: dict[str, Callable[[StudyContext, Count], Cells]] = {
    "gammas": gamma_cells,
    "clip": clip_cells,
    "ranks": rank_cells,
}
ALCHEMY_FIGURES: dict[str, Callable[[StudyContext, Count], Figure]] = {
    "gammas": gamma_figure,
    "gammas-after": gamma_after_figure,
    "clip": clip_figure,
    "ranks": rank_figure,
}


def _rows(context: StudyContext, labelled: Count) -> dict[RowKey, list[ChosenTrial]]:
    if not context.study.keep_networks:
        raise StudyError("gammas are those of trained networks; set keep_networks: true, and run the study again")
    return {key: trials for key, trials in chosen_trials(context).items() if key.labelled == labelled}


def _is(trials: Sequence[ChosenTrial], kind: type) -> bool:
    return isinstance(trials[0].trial.method, kind)


def _require(value: object, description: str) -> None:
    if not value:
        raise StudyError(f"{description} is not finished, so there is nothing to show; add one, and run the study")


def _gammas_of(one: ChosenTrial) -> dict[str, Tensor]:
    return gammas(one.context.network(one.trial.name(one.context.study)))


def _gammas_before(one: ChosenTrial) -> dict[str, Tensor]:
    """Return the gammas that a trial started from."""
    cases, weights = one.context.cases, one.context.weights_before(one.trial)
    network = make_network(one.context.study.network, classes=cases.classes, shape=cases.shape)
    if weights is not None:
        adopt_weights(network, weights)
    return gammas(network)


def _by_seed(values: Sequence[float]) -> str:
    """Return the median as text, and each seed's value where there are several.

    Example:
        >>> _by_seed([0.5]), _by_seed([0.5, 0.25, 1])
        ('0.500', '0.500 (0.500, 0.250, 1.000)')
    """
    middle = f"{median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({', '.join(f'{value:.3f}' for value in values)})"


def _score(one: ChosenTrial) -> float:
    """Return the reported score; a ranking, which has a budget of its own, sees the validation cases alone."""
    study = one.context.study
    part = study.report if one.trial.method.amount is None else "validation"
    return float(one.result[part][study.metrics[0]])


def _clipped_rows(context: StudyContext, labelled: Count) -> dict[RowKey, list[ChosenTrial]]:
    clip = context.study.clip
    if clip is None:
        raise StudyError("the study asks for no clip test; add a section clip")
    rows = {
        key: trials
        for key, trials in _rows(context, labelled).items()
        if key.method in (clip.methods or [key.method]) and key.checkpoint in (clip.checkpoints or [key.checkpoint])
    }
    _require(rows, "the clip test's methods")
    return rows


def _clip_test(one: ChosenTrial) -> ClipTest:
    """Return the clip test of a trained network; it is measured once, and kept in the study's folder."""
    context, clip = one.context, one.context.study.clip
    assert isinstance(clip, ClipTestSection)
    trial = one.trial.name(context.study)
    settings = clip.model_dump_json(exclude={"methods", "checkpoints"})
    name = f"clip_{hashlib.sha256(f'{trial} {settings}'.encode()).hexdigest()[:12]}"
    held = context.store.load(name)
    if held is None:
        held = asdict(_measure_clip_test(context, clip, trial, one.trial.seed))
        context.store.save(name, held)
    points = tuple(ClipPoint(**{**point, "random": tuple(point["random"])}) for point in held["points"])
    return ClipTest(held["baseline"], points, held["band"])


def _measure_clip_test(context: StudyContext, clip: ClipTestSection, trial: str, seed: int) -> ClipTest:
    network, study = context.network(trial), context.study
    sizes = torch.cat([gamma.flatten().abs() for gamma in gammas(network).values()]).sort().values
    # The threshold of a share is the first gamma that is not clipped.
    thresholds = [sizes[int(share * len(sizes))].item() for share in clip.shares]
    cases = context.cases.validation[: clip.cases]
    return clip_test(
        network,
        lambda net: evaluate(net, cases, classes=context.cases.classes, patch=study.data.patch)[study.metrics[0]],
        thresholds,
        draws=clip.draws,
        seed=seed,
    )


def _contests(context: StudyContext, labelled: Count) -> dict[str, tuple[BySeed, BySeed]]:
    """Return, for each norm-only method, its trials and those of the flat rate, on the seeds that both finished."""
    by_method: dict[str, dict[str, list[ChosenTrial]]] = {}
    for key, trials in chosen_trials(context).items():
        if key.labelled == labelled:
            by_method.setdefault(key.method, {})[key.checkpoint] = trials
    methods = context.study.methods
    flat = next((method.name for method in methods if isinstance(method, Flat)), "")
    contests = {}
    for method in methods:
        by_checkpoint = [by_method.get(name, {}) for name in (method.name, flat)]
        names = [name for name in by_checkpoint[0] if name in by_checkpoint[1]]
        if isinstance(method, NormOnly) and len(names) > 1:
            lists = [
                {name: {one.trial.seed: one for one in trials[name]} for name in names} for trials in by_checkpoint
            ]
            seeds = set.intersection(*(set(trials) for part in lists for trials in part.values()))
            short, full = (
                {seed: {name: part[name][seed] for name in names} for seed in sorted(seeds)} for part in lists
            )
            contests[method.name] = (short, full)
    return contests

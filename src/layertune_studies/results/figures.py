"""`layertune study plot`: the papers' figures of a study's results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from layertune import LayerMap, LRProfile
from layertune.errors import LayertuneError
from layertune.layers.layer import Depth
from layertune.plots.network import plot_network
from layertune.plots.rates import plot_lrs_over_depth, plot_lrs_over_time
from layertune.plots.saving import save_figure
from layertune.plots.style import COLUMN, FONT, LINE_COLORS, SMALL_FONT, new_axes
from layertune_studies.config.methods import BiDirectionalMethod
from layertune_studies.engine.context import StudyContext, best_of
from layertune_studies.engine.trial import Trial
from layertune_studies.errors import StudyError
from layertune_studies.results.alchemy import ALCHEMY_FIGURES
from layertune_studies.results.table import ChosenTrial, chosen_trials, labelled_of, rows_by_start

__all__ = ["FIGURES", "plot_study"]

MOST_MAPS = 8


def plot_study(context: StudyContext, kind: str, path: Path, *, labelled: int | str | None = None) -> Path:
    """Draw one figure of a study.

    Args:
        context: The study with its results.
        kind: The name of the figure, one of ``FIGURES``.
        path: The file to write; its ending says the format.
        labelled: The number of labelled cases that is shown; by default the first one of the study.

    Raises:
        StudyError: The figure or its format is unknown, or the study lacks what it shows.
        SaveError: The file cannot be written.
    """
    if kind not in FIGURES:
        raise StudyError(f"{kind!r} is no figure of a study; there are {', '.join(FIGURES)}")
    figure: Figure = FIGURES[kind](context, labelled_of(context.study, labelled))
    try:
        save_figure(figure, path, dpi=200)
    except ValueError as error:  # a format that matplotlib does not write
        raise StudyError(f"the figure cannot be written to {path} ({error})") from error
    return path


def heat_map(context: StudyContext, labelled: int | str) -> Figure:
    """Draw the first metric of every setting (m, n) of bi-directional fine-tuning (MetaLR, fig. 3a).

    The best rate of each setting is chosen on the validation cases; what is shown is the median over seeds.
    """
    study, metric = context.study, context.study.metrics[0]
    by_setting: dict[tuple[int, int], dict[int, dict[Trial, Any]]] = {}
    for trial, result in context.results(_trials(context, labelled)).items():
        if isinstance(trial.method, BiDirectionalMethod) and trial.method.depth in (None, study.network.depth):
            by_setting.setdefault(trial.setting.numbers[:2], {}).setdefault(trial.seed, {})[trial] = result
    if not by_setting:
        raise StudyError(
            "no bi-directional trial is finished, so there is no heat map; add the method, or run the study to its end"
        )
    d = context.depths.d
    values = np.full((d - 1, d - 1), np.nan)
    for (m, n), seeds in by_setting.items():
        best = [results[best_of(study, results)] for results in seeds.values()]
        values[n - 1, m - 1] = 100 * np.median([float(one[study.report][metric]) for one in best])
    axes = new_axes(COLUMN, 3.1)
    image = axes.imshow(values, origin="lower", extent=(0.5, d - 0.5, 0.5, d - 0.5), cmap="viridis")
    for m, n in by_setting:
        axes.text(m, n, f"{values[n - 1, m - 1]:.1f}", ha="center", va="center", fontsize=SMALL_FONT - 1.5, color="w")
    axes.set_xlabel("m, the shallowest frozen depth")
    axes.set_ylabel("n, the deepest frozen depth")
    axes.figure.colorbar(image, ax=axes).set_label(f"{metric}, %", fontsize=FONT)
    return _figure(axes)


def rates_over_depth(context: StudyContext, labelled: int | str) -> Figure:
    """Draw the learned rates of each MetaLR method over the layers, on the middle seed (MetaLR, figs. 3b, 4a)."""
    return _figure(plot_lrs_over_depth(_profiles(context, labelled)))


def rates_over_time(context: StudyContext, labelled: int | str) -> Figure:
    """Draw the learned rates of the first MetaLR method over the steps, on the middle seed (MetaLR, fig. 4b)."""
    return _figure(plot_lrs_over_time(next(iter(_profiles(context, labelled).values()))))


def network(context: StudyContext, labelled: int | str) -> Figure:
    """Draw the network coloured by the first MetaLR method's rates; of a U-Net in both readings of its depth."""
    profile = next(iter(_profiles(context, labelled).values()))
    readings: dict[str, LayerMap] = {}
    for depth in get_args(Depth):
        try:
            readings[depth] = context.layers_with(depth)
        except LayertuneError:  # a network without an expanding path has no depth I2
            continue
    figure = Figure(figsize=(3.6 * len(readings), 2.6), layout="constrained")
    for axes, (depth, layers) in zip(
        figure.subplots(1, len(readings), squeeze=False)[0], readings.items(), strict=True
    ):
        plot_network(layers, profile, ax=axes)
        axes.set_title(depth, fontsize=FONT)
    return figure


def starting_rates(context: StudyContext, labelled: int | str) -> Figure:
    """Draw the first metric over the learning rate that each method starts from, medians over seeds."""
    metric = context.study.metrics[0]
    by_method = {key.label: rows for key, rows in rows_by_start(context).items() if key.labelled == labelled}
    if not by_method:
        raise StudyError("no method has finished trials from two rates, so there is nothing to compare")
    axes = new_axes(COLUMN, 2.6)
    for number, (name, rows) in enumerate(by_method.items()):
        medians = [100 * float(np.median(row.values[metric])) for row in rows.values()]
        axes.plot(list(rows), medians, marker="o", ms=3, color=LINE_COLORS[number % len(LINE_COLORS)], label=name)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate at the start")
    axes.set_ylabel(f"{metric}, %")
    axes.legend(fontsize=SMALL_FONT, frameon=False)
    return _figure(axes)


@torch.no_grad()
def feature_maps(context: StudyContext, labelled: int | str) -> Figure:
    """Draw the output of the first layer for a test image, with and without tuning that layer (MetaLR, fig. 2)."""
    if not context.study.keep_networks:
        raise StudyError("feature maps need the trained networks; set keep_networks: true, and run the study again")
    methods = {"all layers tuned": "flat", "first layer fixed": "m1-n1"}
    image = context.cases.test[0].image
    figure = Figure(figsize=(2 * COLUMN, 2.0 * (1 + len(methods)) / 2 + 0.6), layout="constrained")
    axes: Any = figure.subplots(len(methods), MOST_MAPS + 1, squeeze=False)
    for line, (title, method) in zip(axes, methods.items(), strict=True):
        maps = _first_maps(context, _trial_of(context, labelled, method), image)
        line[0].imshow(_slice(image)[0], cmap="gray")
        line[0].set_title(title, fontsize=SMALL_FONT, loc="left")
        for ax, one in zip(line[1:], maps, strict=False):
            ax.imshow(one, cmap="gray")
        for ax in line:
            ax.set_axis_off()
    return figure


FIGURES: dict[str, Callable[[StudyContext, int | str], Figure]] = {
    "heat-map": heat_map,
    "rates-over-depth": rates_over_depth,
    "rates-over-time": rates_over_time,
    "network": network,
    "starting-rates": starting_rates,
    "feature-maps": feature_maps,
    **ALCHEMY_FIGURES,
}


def _trials(context: StudyContext, labelled: int | str) -> list[Trial]:
    """Return all trials whose rate is known."""
    return context.ready(trial for trial in context.trials if trial.labelled == labelled)


def _profiles(context: StudyContext, labelled: int | str) -> dict[str, LRProfile]:
    """Return the learned rates of each method that learns them, on the seed with the median score."""
    profiles = {
        key.label: LRProfile(**_middle(trials).result["profile"])
        for key, trials in chosen_trials(context).items()
        if key.labelled == labelled and all(one.result["profile"] for one in trials)
    }
    if not profiles:
        raise StudyError("no method that learns rates is finished; add one of kind metalr, and run the study")
    return profiles


def _middle(trials: Sequence[ChosenTrial]) -> ChosenTrial:
    metric = trials[0].context.study.metrics[0]
    ranked = sorted(trials, key=lambda one: float(one.result["validation"][metric]))
    return ranked[len(ranked) // 2]


def _trial_of(context: StudyContext, labelled: int | str, key: str) -> str:
    """Return the name of a method's or setting's trial: on the first seed, at the rate that validation chose."""
    ours = [one for one in _trials(context, labelled) if key in (one.method.kind, one.setting.label) and one.seed == 0]
    results = context.results(ours)
    if not results:
        raise StudyError(
            f"no network of {key} is kept; add the method or setting, and run the study with keep_networks"
        )
    return best_of(context.study, results).name(context.study)


def _first_maps(context: StudyContext, trial: str, image: Tensor) -> Tensor:
    """Return channels of the first layer's output, of a volume the middle slice."""
    trained, outputs = context.network(trial), list[Tensor]()
    first = trained.get_submodule(context.layers[0].name)
    first.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    trained(image[None])
    return _slice(outputs[0])[:MOST_MAPS]


def _slice(maps: Tensor) -> Tensor:
    return maps if maps.ndim == 3 else maps[..., maps.shape[-1] // 2]


def _figure(axes: Any) -> Figure:
    figure: Figure = axes.figure
    return figure

"""`layertune study plot`: the papers' figures of a study's results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from layertune import LRProfile
from layertune.plots.rates import plot_lrs_over_depth, plot_lrs_over_time
from layertune.plots.saving import save_figure
from layertune.plots.style import COLUMN, FONT, LINE_COLORS, SMALL_FONT, new_axes
from layertune_studies.config.methods import BiDirectionalMethod
from layertune_studies.engine.context import StudyContext, best_of
from layertune_studies.engine.trial import Trial
from layertune_studies.errors import StudyError
from layertune_studies.results.table import Chosen, chosen_trials, rows_by_start
from layertune_studies.training.network import make_network

__all__ = ["FIGURES", "plot_study"]

MOST_MAPS = 8
MapOf = Callable[[Tensor], Tensor]


def plot_study(context: StudyContext, kind: str, path: Path, *, labelled: int | str | None = None) -> Path:
    """Draw one figure of a study.

    Args:
        context: the study with its results.
        kind: one of ``FIGURES``.
        path: of the figure; its ending says the format.
        labelled: which number of labelled cases; by default the first of the study.

    Raises:
        StudyError: the figure is unknown, or the study has not what it shows.
    """
    if kind not in FIGURES:
        raise StudyError(f"{kind!r} is no figure of a study; there are {', '.join(FIGURES)}")
    counts = context.study.data.labelled
    wanted = counts[0] if labelled is None else labelled
    if wanted not in counts:
        raise StudyError(f"{wanted} is no number of labelled cases of this study: {', '.join(map(str, counts))}")
    figure: Figure = FIGURES[kind](context, wanted)
    try:
        save_figure(figure, path, dpi=200)
    except (OSError, ValueError) as error:
        raise StudyError(f"the figure cannot be written to {path} ({error})") from error
    return path


def heat_map(context: StudyContext, labelled: int | str) -> Figure:
    """The first metric of every setting (m, n) of bi-directional fine-tuning, the median over seeds (MetaLR fig. 3a).

    The best rate of each setting is chosen on the validation cases.
    """
    study, metric = context.study, context.study.metrics[0]
    found: dict[tuple[int, int], dict[int, dict[Trial, Any]]] = {}
    for trial, result in context.results(_trials(context, labelled)).items():
        if isinstance(trial.method, BiDirectionalMethod):
            found.setdefault(trial.setting.numbers[:2], {}).setdefault(trial.seed, {})[trial] = result
    if not found:
        raise StudyError(
            "no bi-directional trial is finished, so there is no heat map; add the method, or run the study to its end"
        )
    d = context.depths.d
    values = np.full((d - 1, d - 1), np.nan)
    for (m, n), seeds in found.items():
        best = [results[best_of(study, results)] for results in seeds.values()]
        values[n - 1, m - 1] = 100 * np.median([float(one[study.report][metric]) for one in best])
    axes = new_axes(COLUMN, 3.1)
    image = axes.imshow(values, origin="lower", extent=(0.5, d - 0.5, 0.5, d - 0.5), cmap="viridis")
    for m, n in found:
        axes.text(m, n, f"{values[n - 1, m - 1]:.1f}", ha="center", va="center", fontsize=SMALL_FONT - 1.5, color="w")
    axes.set_xlabel("m, the shallowest frozen depth")
    axes.set_ylabel("n, the deepest frozen depth")
    axes.figure.colorbar(image, ax=axes).set_label(f"{metric}, %", fontsize=FONT)
    return _figure(axes)


def rates_over_depth(context: StudyContext, labelled: int | str) -> Figure:
    """The learned rates of each MetaLR method over the layers, on the seed in the middle (MetaLR figs. 3b, 4a)."""
    profiles = {
        method: LRProfile(**_middle(ones, context).result["profile"])
        for method, ones in _learned(context, labelled).items()
    }
    return _figure(plot_lrs_over_depth(profiles))


def rates_over_time(context: StudyContext, labelled: int | str) -> Figure:
    """The learned rates of the first MetaLR method over the steps, on the seed in the middle (MetaLR fig. 4b)."""
    ones = next(iter(_learned(context, labelled).values()))
    return _figure(plot_lrs_over_time(LRProfile(**_middle(ones, context).result["profile"])))


def starting_rates(context: StudyContext, labelled: int | str) -> Figure:
    """The first metric over the learning rate that each method starts from, medians over seeds."""
    metric = context.study.metrics[0]
    found = {name: rows for (name, count), rows in rows_by_start(context).items() if count == labelled}
    if not found:
        raise StudyError("no method has finished trials from two rates, so there is nothing to compare")
    axes = new_axes(COLUMN, 2.6)
    for number, (name, rows) in enumerate(found.items()):
        medians = [100 * float(np.median(row.values[metric])) for row in rows.values()]
        axes.plot(list(rows), medians, marker="o", ms=3, color=LINE_COLORS[number % len(LINE_COLORS)], label=name)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate at the start")
    axes.set_ylabel(f"{metric}, %")
    axes.legend(fontsize=SMALL_FONT, frameon=False)
    return _figure(axes)


@torch.no_grad()
def feature_maps(context: StudyContext, labelled: int | str) -> Figure:
    """What the first layer makes of a test image, with and without tuning that layer (MetaLR fig. 2)."""
    if not context.study.keep_networks:
        raise StudyError("feature maps need the trained networks; set keep_networks: true, and run the study again")
    wanted = {"all layers tuned": "flat", "first layer fixed": "m1-n1"}
    found = {title: _network_of(context, labelled, key) for title, key in wanted.items()}
    image = context.cases.test[0].image
    figure = Figure(figsize=(2 * COLUMN, 2.0 * (1 + len(found)) / 2 + 0.6), layout="constrained")
    axes: Any = figure.subplots(len(found), MOST_MAPS + 1, squeeze=False)
    for line, (title, tensors) in zip(axes, found.items(), strict=True):
        maps = _first_maps(context, tensors, image)
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
    "starting-rates": starting_rates,
    "feature-maps": feature_maps,
}


def _trials(context: StudyContext, labelled: int | str) -> list[Trial]:
    """All trials whose rate is known."""
    tuned = [context.tuned(trial) for trial in context.trials if trial.labelled == labelled]
    return [trial for trial in tuned if trial is not None]


def _learned(context: StudyContext, labelled: int | str) -> dict[str, list[Chosen]]:
    found = {
        method: ones
        for (method, count), ones in chosen_trials(context).items()
        if count == labelled and all(one.result["profile"] for one in ones)
    }
    if not found:
        raise StudyError("no method that learns rates is finished; add one of kind metalr, and run the study")
    return found


def _middle(ones: Sequence[Chosen], context: StudyContext) -> Chosen:
    """Of the seeds the one with the median score."""
    ranked = sorted(ones, key=lambda one: float(one.result["validation"][context.study.metrics[0]]))
    return ranked[len(ranked) // 2]


def _network_of(context: StudyContext, labelled: int | str, key: str) -> dict[str, Tensor]:
    """The network of a method, or of a setting, by name: on the first seed, at the rate that validation chose."""
    ours = [one for one in _trials(context, labelled) if key in (one.method.kind, one.setting.label) and one.seed == 0]
    results = context.results(ours)
    name = best_of(context.study, results).name(context.study) if results else ""
    held: dict[str, Tensor] | None = context.store.load_tensors(name) if name else None
    if held is None:
        raise StudyError(
            f"no network of {key} is kept; add the method or setting, and run the study with keep_networks"
        )
    return held


def _first_maps(context: StudyContext, tensors: dict[str, Tensor], image: Tensor) -> Tensor:
    """Channels of the first layer's output, of a volume the middle slice."""
    cases = context.cases
    network = make_network(context.study.network, classes=cases.classes, shape=cases.shape)
    network.load_state_dict(tensors)
    seen: list[Tensor] = []
    first = network.get_submodule(context.layers[0].name)
    first.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    network.eval()(image[None])
    return _slice(seen[0])[:MOST_MAPS]


def _slice(maps: Tensor) -> Tensor:
    return maps if maps.ndim == 3 else maps[..., maps.shape[-1] // 2]


def _figure(axes: Any) -> Figure:
    figure: Figure = axes.figure
    return figure

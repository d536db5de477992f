"""The figures of a study's page, as texts that are part of the page: SVG, and PNG in base64 for images."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from itertools import cycle

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from layertune import LRProfile
from layertune.plots import plot_lrs_over_depth, plot_lrs_over_time, plot_network
from layertune.plots.style import LINE_COLORS
from layertune_studies.config.sets import SETS
from layertune_studies.data.case import Case
from layertune_studies.engine.context import StudyContext
from layertune_studies.results.alchemy import ALCHEMY_FIGURES
from layertune_studies.results.table import ChosenTrial, RowKey
from layertune_studies.training.metrics import label_map

__all__ = ["examples_png", "learned_profiles", "learning_curves", "page_figures", "svg"]

CLASS_COLORS = {"Blue": LINE_COLORS[0], "orange": LINE_COLORS[4], "green": LINE_COLORS[2], "red": LINE_COLORS[1]}
SMOOTHING = 5  # steps

Methods = Mapping[str, Sequence[ChosenTrial]]


def page_figures(context: StudyContext, chosen: Mapping[RowKey, Sequence[ChosenTrial]]) -> dict[str, dict[str, Markup]]:
    """Draw the figures that a study has results for, at its first number of labelled cases.

    Args:
        context: The study with its results.
        chosen: The chosen trial of each seed, for each row of the table.

    Returns:
        By heading, the figures by their captions, ready to be put into a page.
    """
    labelled = context.study.data.labelled[0]
    methods = {key.label: trials for key, trials in chosen.items() if key.labelled == labelled}
    figures = {
        "Learning curves": _curves(methods),
        "Learned rates": _rates(context, methods),
        "Gammas": _gammas(context, chosen, labelled),
        "An example": _example(context, methods),
    }
    return {heading: panels for heading, panels in figures.items() if panels}


def _curves(methods: Methods) -> dict[str, Markup]:
    recorded = {name: [one for one in trials if "curve" in one.result] for name, trials in methods.items()}
    if not any(recorded.values()):
        return {}
    axes = learning_curves({name: trials for name, trials in recorded.items() if trials and trials[0].result["steps"]})
    return {"Of the chosen settings, the mean over seeds.": svg(axes)}


def _rates(context: StudyContext, methods: Methods) -> dict[str, Markup]:
    profiles = learned_profiles(methods)
    if not profiles:
        return {}
    name, first = next(iter(profiles.items()))
    return {
        f"The network coloured by the rates of {name}, mean of the last quarter of training.": svg(
            plot_network(context.layers, first)
        ),
        "Rates over depth.": svg(plot_lrs_over_depth(profiles)),
        f"Rates over time, {name}.": svg(plot_lrs_over_time(first)),
    }


def _gammas(
    context: StudyContext, chosen: Mapping[RowKey, Sequence[ChosenTrial]], labelled: int | str
) -> dict[str, Markup]:
    """Draw Network Alchemy's figures, as far as the study has the methods that they show."""
    kinds = {trials[0].trial.method.kind for trials in chosen.values()}
    wanted = {
        "gammas": "norm-only" in kinds,
        "gammas-after": "alchemy" in kinds,
        "clip": context.study.clip is not None,
        "ranks": "norm-only" in kinds and "flat" in kinds and len(context.study.checkpoints) > 1,
    }
    names = [name for name in ALCHEMY_FIGURES if wanted[name] and context.study.keep_networks]
    return {name: svg(ALCHEMY_FIGURES[name](context, labelled).axes[0]) for name in names}


def _example(context: StudyContext, methods: Methods) -> dict[str, Markup]:
    """Draw the label maps of each method for the first test case, where there are networks and few classes."""
    study, count = context.study, context.cases.classes
    if not study.keep_networks or context.cases.task != "segmentation" or count > len(CLASS_COLORS) + 1:
        return {}
    case = context.cases.test[0]
    maps = {
        name: label_map(
            trials[0].context.network(trials[0].trial.name(trials[0].context.study)), case.image, study.data.patch
        )
        for name, trials in methods.items()
    }
    names = SETS[study.data.set].classes or tuple(f"class {number}" for number in range(count))
    colors = "; ".join(f"{color}: {name}" for color, name in zip(CLASS_COLORS, names[1:count], strict=False))
    seed = next(iter(methods.values()))[0].trial.seed
    return {f"The first test case, seed {seed}. {colors}.": examples_png(case, maps)}


def learned_profiles(methods: Methods) -> dict[str, LRProfile]:
    """Return the learned rates by method and seed, where rates were learned."""
    return {
        f"{method}, seed {one.trial.seed}": LRProfile(**one.result["profile"])
        for method, trials in methods.items()
        for one in trials
        if one.result["profile"]
    }


def svg(axes: Axes) -> Markup:
    """Return a figure as an SVG element whose glyphs are paths, so that no font has to be installed."""
    text = StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes were removed from their figure; draw them again")
    figure.savefig(text, format="svg", bbox_inches="tight", metadata=no_metadata)
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])  # noqa: S704 - drawn here


def learning_curves(methods: Methods) -> Axes:
    """Draw the training loss and the validation score over steps, the mean over seeds.

    Args:
        methods: By method, the trial that was chosen on each seed.

    Returns:
        The left one of two axes.
    """
    figure = Figure(figsize=(8.5, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = {name: [one.result["curve"] for one in trials] for name, trials in methods.items()}
    for (title, seeds), color in zip(curves.items(), cycle(LINE_COLORS), strict=False):
        steps = min(len(seed["losses"]) for seed in seeds)  # a training that diverges stops early
        loss = _smooth(np.mean([seed["losses"][:steps] for seed in seeds], axis=0))
        left.plot(np.arange(1, len(loss) + 1), loss, color=color, label=title, lw=1.2)
        count = min(len(seed["validation"]) for seed in seeds)
        points = np.mean([seed["validation"][:count] for seed in seeds], axis=0)
        right.plot(points[:, 0], points[:, 1], color=color, label=title, lw=1.2, marker=".")
    for axes, label in ((left, f"training loss, mean of {SMOOTHING} steps"), (right, "score on validation cases")):
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", lw=0.4, alpha=0.5)
    left.legend(frameon=False, fontsize=8)
    axes_of_losses: Axes = left
    return axes_of_losses


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean of each value and up to four before it."""
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - SMOOTHING, 0)
    means: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def examples_png(case: Case, predictions: Mapping[str, Tensor]) -> Markup:
    """Draw one slice of a case: the image, its label map, and the label map of each method.

    Args:
        case: A volume (1, x, y, z) with its label map.
        predictions: By method, a label map of the same shape.

    Returns:
        An image element that holds a PNG.
    """
    level = int((case.label[0] > 0).sum(dim=(0, 1)).argmax())
    panels: list[tuple[str, Tensor | None]] = [("Image", None), ("Truth", case.label), *predictions.items()]
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    colors = ListedColormap([(0, 0, 0, 0), *(to_rgba(color, 0.6) for color in CLASS_COLORS.values())], "classes")
    figure = Figure(figsize=(2.0 * columns, 2.5 * rows), layout="constrained")
    for index, (title, label) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, index)
        axes.imshow(case.image[0, :, :, level].T.numpy(), cmap="gray", origin="lower")
        if label is not None:
            axes.imshow(label[0, :, :, level].T.numpy(), cmap=colors, vmin=0, vmax=len(CLASS_COLORS), origin="lower")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110)
    image = Markup('<img src="data:image/png;base64,{}" alt="A slice of a test case, with the labels of each method">')
    return image.format(base64.b64encode(data.getvalue()).decode())

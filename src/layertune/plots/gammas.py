"""Figures of gammas: their distribution, the clip test, and how norm-only and full training agree."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from layertune.alchemy.clip_test import ClipTest
from layertune.alchemy.norms import require_finite
from layertune.alchemy.rank_correlation import rank_correlation
from layertune.errors import AlchemyError
from layertune.plots.style import (
    COLUMN,
    FONT,
    LINE_COLORS,
    MOST_NAMED,
    SMALL_FONT,
    finish_axes,
    line_styles,
    name_ticks,
    new_axes,
)

__all__ = ["plot_clip_test", "plot_gammas", "plot_gammas_by_layer", "plot_rank_correlation"]

Gammas = Mapping[str, Tensor]


def plot_gammas(
    named: Gammas | Mapping[str, Gammas], *, threshold: float | None = None, bins: int = 40, ax: Axes | None = None
) -> Axes:
    """Draw the distribution of the gammas of a network as a histogram (Network Alchemy, figs. 3.2 and 4.1).

    Args:
        named: The gammas by norm, as ``gammas`` returns them; or several such dictionaries by their names in the
            legend, for example before and after a training.
        threshold: The |gamma| below which kernels count as redundant; a grey band shows it on both sides of 0.
        bins: The number of bins of the histogram.
        ax: The axes to draw on. By default a new figure of the width of a journal's column is made.

    Returns:
        The axes; ``ax.figure.savefig("gammas.pdf")`` saves the figure.

    Raises:
        AlchemyError: There are no gammas, or a gamma is not finite.

    Example:
        >>> from torch import ones
        >>> ax = plot_gammas({"before": {"norm": 0.2 * ones(4)}, "after": {"norm": ones(4)}}, threshold=0.05)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['before', 'after']
    """
    several = _several(named)
    values = {name: np.concatenate([_flat(gamma) for gamma in gammas.values()]) for name, gammas in several.items()}
    pooled = np.concatenate(list(values.values()))
    low, high = min(0.0, pooled.min()), max(pooled.max(), 0.0)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1).tolist()
    ax = ax or new_axes(COLUMN, 2.4)
    for (name, sample), (color, _) in zip(values.items(), line_styles(), strict=False):
        weights = np.full(len(sample), 1 / len(sample))  # shares, so that networks of different sizes compare
        ax.hist(sample, edges, weights=weights, histtype="stepfilled", color=color, alpha=0.15)
        ax.hist(sample, edges, weights=weights, histtype="step", color=color, lw=1.2, label=name)
    if threshold is not None:
        ax.axvspan(-threshold if low < 0 else 0.0, threshold, color="0.8", lw=0, zorder=0)
    if len(values) > 1:
        ax.legend(fontsize=SMALL_FONT, frameon=False)
    ax.set_xlabel("γ", fontsize=FONT)
    ax.set_ylabel("share of kernels", fontsize=FONT)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return finish_axes(ax)


def plot_gammas_by_layer(named: Gammas | Mapping[str, Gammas], *, ax: Axes | None = None) -> Axes:
    """Draw the gammas of each norm in the network's order: the median, and the 10th to the 90th percentile.

    Args:
        named: The gammas by norm, as ``gammas`` returns them; or several such dictionaries of one network by their
            names in the legend.
        ax: The axes to draw on. By default a new figure of the width of a journal's column is made.

    Raises:
        AlchemyError: There are no gammas, a gamma is not finite, or the gammas belong to different networks.

    Example:
        >>> from torch import tensor
        >>> ax = plot_gammas_by_layer({"stem.norm": tensor([0.5, 1.0]), "last.norm": tensor([0.1, 0.2])})
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['stem', 'last']
    """
    several = _several(named)
    first, *others = [list(gammas) for gammas in several.values()]
    if any(norms != first for norms in others):
        raise AlchemyError("gammas of different networks do not share an axis; draw them one by one")
    ax = ax or new_axes(COLUMN, 2.6)
    for index, ((name, gammas), (color, marker)) in enumerate(zip(several.items(), line_styles(), strict=False)):
        places = np.arange(1, len(gammas) + 1) + 0.25 * (index - (len(several) - 1) / 2)  # side by side
        low, middle, high = (
            np.array([np.quantile(_flat(gamma), q) for gamma in gammas.values()]) for q in (0.1, 0.5, 0.9)
        )
        ax.vlines(places, low, high, color=color, lw=1.2)
        ax.plot(places, middle, marker, color=color, markersize=3.5, label=name)
    if len(several) > 1:
        # Above the axes, where no layer lies.
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(several), fontsize=SMALL_FONT, frameon=False)
    _label_norms(ax, first)
    ax.set_ylabel("γ, median and 10–90 %", fontsize=FONT)
    return finish_axes(ax)


def plot_clip_test(result: ClipTest, *, metric: str = "Dice", ax: Axes | None = None) -> Axes:
    """Draw the result of the clip test: the metric over the threshold (Network Alchemy, fig. 3.1).

    One line shows the metric after the gammas below the threshold were set to 0, another one the metric after as many
    random gammas were. The percentages are the shares of gammas that were set to 0. The grey band is the accepted
    change of the metric. The whiskers span the random draws.

    Args:
        result: The result of ``clip_test``.
        metric: The name of the metric, for the axis.
        ax: The axes to draw on. By default a new figure of the width of a journal's column is made.

    Example:
        >>> from layertune.alchemy.clip_test import ClipPoint, ClipTest
        >>> result = ClipTest(0.8, (ClipPoint(0.1, 2, 0.2, 0.79, (0.4, 0.6)),), 0.02)
        >>> [text.get_text() for text in plot_clip_test(result).get_legend().get_texts()]
        ['γ below the threshold', 'as many random γ']
    """
    ax = ax or new_axes(COLUMN, 2.6)
    at = [point.threshold for point in result.points]
    margin = abs(result.baseline) * result.band
    ax.axhspan(result.baseline - margin, result.baseline + margin, color="0.88", lw=0, zorder=0)
    ax.axhline(result.baseline, color="0.5", lw=0.8, zorder=1)
    ax.plot(
        at, [point.metric for point in result.points], "o-", color=LINE_COLORS[0], ms=4, label="γ below the threshold"
    )
    means = np.array(result.random_means)
    low = means - np.array([min(point.random) for point in result.points])
    high = np.array([max(point.random) for point in result.points]) - means
    ax.errorbar(at, means, yerr=[low, high], fmt="s--", color=LINE_COLORS[1], ms=4, lw=1.2, label="as many random γ")
    for point in result.points:
        text = f"{point.share:.0%}"
        ax.annotate(text, (point.threshold, point.metric), (0, 5), textcoords="offset points", ha="center", fontsize=6)
    ax.legend(fontsize=SMALL_FONT, frameon=False)
    ax.set_xlabel("threshold for |γ|", fontsize=FONT)
    ax.set_ylabel(metric, fontsize=FONT)
    return finish_axes(ax)


def plot_rank_correlation(
    norm_only: Mapping[str, float], full: Mapping[str, float], *, metric: str = "Dice", ax: Axes | None = None
) -> Axes:
    """Draw the metric after full training over the metric after norm-only training (Network Alchemy, tab. 4.3).

    Args:
        norm_only: The metric of each checkpoint after norm-only training, by the checkpoint's name.
        full: The metric of each checkpoint after training all weights.
        metric: The name of the metric, for the axes.
        ax: The axes to draw on. By default a new figure of the width of a journal's column is made.

    Returns:
        The axes, with Spearman's rank correlation in their title.

    Raises:
        AlchemyError: The checkpoints differ, or there are fewer than two.

    Example:
        >>> thesis = {"scratch": 0.0542, "CT": 0.2738, "MRI": 0.2885}  # BraTS'17
        >>> plot_rank_correlation(thesis, {"scratch": 0.5896, "CT": 0.5995, "MRI": 0.6056}).get_title()
        "Spearman's ρ = 1.00"
    """
    if set(norm_only) != set(full):
        raise AlchemyError(
            f"the checkpoints differ: {sorted(set(norm_only) ^ set(full))} have one value; give both values of each"
        )
    names = list(norm_only)
    rho = rank_correlation([norm_only[name] for name in names], [full[name] for name in names])
    ax = ax or new_axes(COLUMN, 2.6)
    ax.plot([norm_only[name] for name in names], [full[name] for name in names], "o", color=LINE_COLORS[0], ms=4)
    for name in names:
        place = (norm_only[name], full[name])
        ax.annotate(name, place, (4, 3), textcoords="offset points", fontsize=SMALL_FONT)
    ax.margins(x=0.15, y=0.12)
    ax.set_title(f"Spearman's ρ = {rho:.2f}", fontsize=FONT)
    ax.set_xlabel(f"{metric}, norms alone trained", fontsize=FONT)
    ax.set_ylabel(f"{metric}, all trained", fontsize=FONT)
    return finish_axes(ax)


def _several(named: Gammas | Mapping[str, Gammas]) -> dict[str, Gammas]:
    one = {name: values for name, values in named.items() if isinstance(values, Tensor)}
    several: dict[str, Gammas] = {"": one} if one else {k: v for k, v in named.items() if not isinstance(v, Tensor)}
    if not several or not all(several.values()):
        raise AlchemyError("there are no gammas to show; give what layertune.gammas(model) returns")
    for gammas in several.values():
        require_finite(gammas)
    return several


def _flat(gamma: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array: np.ndarray[tuple[int], np.dtype[np.float64]] = gamma.detach().flatten().double().cpu().numpy()
    return array


def _label_norms(ax: Axes, norms: list[str]) -> None:
    if len(norms) <= MOST_NAMED:
        name_ticks(ax, norms)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.set_xlabel("number of the norm", fontsize=FONT)

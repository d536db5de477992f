"""Figures of learned rates, over the depth of the layers and over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from layertune.errors import ProfileError
from layertune.plots.style import (
    COLUMN,
    FONT,
    MOST_NAMED,
    SMALL_FONT,
    depth_colors,
    finish_axes,
    line_styles,
    name_ticks,
    new_axes,
    shared_path,
    short_names,
    tick_rates,
)
from layertune.rates.profile import LRProfile

__all__ = ["plot_lrs_over_depth", "plot_lrs_over_time", "plot_profile"]

MOST_LISTED = 12  # with more layers a colour bar of depth replaces the legend
LEAST_RANGE = 1.2  # the axis of rates spans at least this factor up and down, where they hardly differ


def plot_lrs_over_depth(profiles: LRProfile | Mapping[str, LRProfile], *, ax: Axes | None = None) -> Axes:
    """Draw the learned rate of each layer, in order of depth (MetaLR figs. 3b and 4a).

    Args:
        profiles: A profile, or several profiles of the same layers by their names in the legend. The figure shows the
            rates of the last quarter of training (``LRProfile.converged``); a rate of 0 leaves a gap.
        ax: The axes to draw on. By default a new figure of the width of a journal's column is made.

    Returns:
        The axes; ``ax.figure.savefig("lrs.pdf")`` saves the figure.

    Raises:
        ProfileError: There is no profile, a profile is empty, the layers differ, or no rate is above 0.

    Example:
        >>> profile = LRProfile(("stem", "block", "head"), (1, 2, 3), (1,), [[1, 1, 1]], [[1e-2, 1e-3, 1e-1]])
        >>> ax = plot_lrs_over_depth(profile)
        >>> ax.get_yscale(), [label.get_text() for label in ax.get_xticklabels()]
        ('log', ['stem', 'block', 'head'])
    """
    named = {"": profiles} if isinstance(profiles, LRProfile) else dict(profiles)
    _check_same_layers(named)
    first = next(iter(named.values()))
    order = sorted(range(len(first.layers)), key=lambda column: first.depths[column])
    ax = ax or new_axes(COLUMN, 2.6)
    for (name, profile), (color, marker) in zip(named.items(), line_styles(), strict=False):
        rates = profile.converged()
        values = [rates[first.layers[column]] or float("nan") for column in order]
        if all(value != value for value in values):
            of_profile = f" of profile {name!r}" if name else ""
            raise ProfileError(f"no layer{of_profile} has a rate above 0, so there is nothing to show")
        ax.plot(range(1, len(order) + 1), values, color=color, marker=marker, markersize=4, lw=1.2, label=name)
    if len(named) > 1:
        ax.legend(fontsize=SMALL_FONT, frameon=False)
    _label_layers(ax, [first.layers[column] for column in order])
    _label_rates(ax)
    return ax


def plot_lrs_over_time(profile: LRProfile, *, ax: Axes | None = None) -> Axes:
    """Draw the learned rate of each layer over the optimizer steps, coloured by depth (MetaLR fig. 4b).

    Args:
        profile: The profile; a rate of 0 leaves a gap.
        ax: The axes to draw on. By default a new figure of the width of a journal's column is made.

    Returns:
        The axes, with a legend, or with a colour bar of depth for more than 12 layers.

    Raises:
        ProfileError: The profile is empty, or no rate is above 0.

    Example:
        >>> profile = LRProfile(("stem", "head"), (1, 2), (1, 2), [[1, 1], [2, 4]], [[1e-2, 1e-2], [2e-2, 4e-2]])
        >>> [line.get_label() for line in plot_lrs_over_time(profile).lines]
        ['stem', 'head']
    """
    if not any(rate > 0 for row in profile.lrs for rate in row):
        raise ProfileError("the profile has no rate above 0, so there is nothing to show; train at least one step")
    ax = ax or new_axes(COLUMN, 2.6)
    norm, colors = Normalize(min(profile.depths), max(*profile.depths, 2)), depth_colors()
    columns = zip(profile.depths, short_names(profile.layers), zip(*profile.lrs, strict=True), strict=True)
    marker = "o" if len(profile.steps) == 1 else None
    for depth, name, rates in sorted(columns, key=lambda column: column[0]):
        values = [rate or float("nan") for rate in rates]
        ax.plot(profile.steps, values, color=colors(norm(depth)), lw=1.1, marker=marker, markersize=4, label=name)
    if len(profile.layers) > MOST_LISTED:
        bar = ax.figure.colorbar(ScalarMappable(norm, colors), ax=ax, ticks=MaxNLocator(6, integer=True))
        bar.set_label("depth", fontsize=FONT)
        bar.ax.tick_params(labelsize=FONT)
    else:
        # Beside the axes, where no line runs.
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=SMALL_FONT, frameon=False, handlelength=1.2)
    _label_steps(ax, profile.steps)
    _label_rates(ax)
    return ax


def plot_profile(profile: LRProfile) -> Figure:
    """Draw the learned rates over depth and over time, side by side, as hosts do when a training ends.

    Args:
        profile: The learned rates, as ``MetaLR.profile()`` returns them.

    Returns:
        The figure; ``figure.savefig("rates.png")`` saves it.

    Raises:
        ProfileError: The profile is empty, or no rate is above 0.

    Example:
        >>> profile = LRProfile(("stem", "head"), (1, 2), (1, 2), [[1, 1], [2, 1]], [[1e-2, 1e-2], [2e-2, 1e-2]])
        >>> len(plot_profile(profile).axes)
        2
    """
    figure = Figure(figsize=(8.0, 2.8), layout="constrained")
    over_depth, over_time = figure.subplots(1, 2)
    plot_lrs_over_depth(profile, ax=over_depth)
    plot_lrs_over_time(profile, ax=over_time)
    return figure


def _check_same_layers(named: Mapping[str, LRProfile]) -> None:
    if not named:
        raise ProfileError("there is no profile to show; give at least one")
    (name, first), *others = named.items()
    for other, profile in others:
        if (set(profile.layers), profile.depths) != (set(first.layers), first.depths):
            raise ProfileError(
                f"profiles of different layers do not share an axis; {name}: {', '.join(first.layers)}; {other}: "
                f"{', '.join(profile.layers)}; draw them one by one"
            )


def _label_layers(ax: Axes, layers: list[str]) -> None:
    step = math.ceil(len(layers) / MOST_NAMED)  # every second layer is named, or every third, and so on
    name_ticks(ax, layers, step)
    inside = shared_path(layers)
    owner, named = f" of {inside}" if inside else "", f", one in {step} named" if step > 1 else ""
    ax.set_xlabel(f"layer{owner}, shallow to deep{named}", fontsize=FONT)


def _label_steps(ax: Axes, steps: Sequence[int]) -> None:
    if len(steps) == 1:
        ax.set_xlim(steps[0] - 1, steps[0] + 1)  # or the axis would show fractions of a step
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.tick_params(axis="x", labelsize=FONT)
    ax.set_xlabel("optimizer step", fontsize=FONT)


def _label_rates(ax: Axes) -> None:
    ax.set_yscale("log")
    rates = [rate for line in ax.lines for rate in np.asarray(line.get_ydata(), dtype=float) if rate > 0]
    if max(rates) < LEAST_RANGE * min(rates):  # otherwise rates that hardly differ would seem to differ much
        middle = math.sqrt(max(rates) * min(rates))
        ax.set_ylim(middle / LEAST_RANGE, middle * LEAST_RANGE)
    tick_rates(ax.yaxis, *ax.get_ylim())
    ax.set_ylabel("learned learning rate", fontsize=FONT)
    finish_axes(ax)

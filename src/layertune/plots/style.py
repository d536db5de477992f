"""Colours, sizes, axes and short names of layers, which all figures share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from layertune.errors import ProfileError
from layertune.layers.names import common_path

__all__ = [
    "COLUMN",
    "FONT",
    "LINE_COLORS",
    "MOST_NAMED",
    "SMALL_FONT",
    "depth_colors",
    "finish_axes",
    "line_styles",
    "name_ticks",
    "new_axes",
    "rate_norm",
    "shared_path",
    "short_names",
    "tick_rates",
]

COLUMN = 3.5  # inches: the width of a column in most journals
FONT = 8  # points, in a figure of that width
SMALL_FONT = 6.5
MOST_NAMED = 24  # names of layers that fit below an axis

# The palette of Okabe and Ito, whose colours differ for people with any common colour vision deficiency too. Its yellow
# is left out, since it is hard to see on white.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"


def new_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure of a size in inches. The figure has no window and leaves pyplot alone."""
    axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.tick_params(labelsize=FONT)
    axes.xaxis.label.set_fontsize(FONT)
    axes.yaxis.label.set_fontsize(FONT)
    return axes


def finish_axes(axes: Axes) -> Axes:
    """Style axes that are drawn: faint lines at the ticks of y behind the data, and no frame at the top and right."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", lw=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="both", which="both", width=0.6)
    axes.tick_params(axis="y", which="both", labelsize=FONT)
    return axes


def name_ticks(axes: Axes, names: Sequence[str], step: int = 1) -> None:
    """Write the short name of every ``step``-th layer below the axis, where the layers lie at x = 1, 2, and so on."""
    places = range(1, len(names) + 1, step)
    axes.set_xticks(places, short_names(names)[::step], rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize=SMALL_FONT)


def line_styles() -> Iterator[tuple[str, str]]:
    """Return pairs of a colour and a marker without end; the first 35 differ from each other."""
    return zip(cycle(LINE_COLORS), cycle(MARKERS), strict=False)


def depth_colors() -> Colormap:
    """Return the colour map viridis without its yellow end, which is hard to see as a thin line on white."""
    return ListedColormap([mpl.colormaps["viridis"](index / 255) for index in range(210)], "depth")


def rate_norm(rates: Sequence[float]) -> LogNorm:
    """Return a logarithmic colour scale for all rates above 0; a single rate is in the middle of a decade.

    Raises:
        ProfileError: No rate is above 0.
    """
    positive = [rate for rate in rates if rate > 0]
    if not positive:
        raise ProfileError("no layer has a rate above 0, so there is nothing to show on a log scale")
    low, high = min(positive), max(positive)
    return LogNorm(low, high) if high > low else LogNorm(low / 10**0.5, high * 10**0.5)


def tick_rates(axis: Axis, low: float, high: float) -> None:
    """Set the ticks of a logarithmic axis so that their labels do not touch, for any range of rates."""
    decades = math.log10(high / low)
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))  # steps that two decimals show exactly
    else:
        axis.set_major_locator(LogLocator(subs=(1,) if decades > 2.5 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda rate, _: _power_of_ten(rate)))
    axis.set_minor_formatter(NullFormatter())


def _power_of_ten(rate: float) -> str:
    digits, exponent = f"{rate:.2e}".split("e")
    factor = digits.rstrip("0").rstrip(".")
    return rf"$10^{{{int(exponent)}}}$" if factor == "1" else rf"${factor}\times10^{{{int(exponent)}}}$"


def shared_path(names: Sequence[str]) -> str:
    """Return the path of modules that all layers share, which ``short_names`` leaves out; empty if there is none.

    Example:
        >>> shared_path(["net.encoder.stages.0", "net.encoder.stages.1"])
        'net.encoder.stages'
    """
    return common_path(name.rpartition(".")[0] for name in names)


def short_names(names: Sequence[str], width: int = 14) -> list[str]:
    """Shorten the names of layers so that they fit into a figure.

    Modules at the beginning that all names share are left out, and modules at the end that are not needed to tell the
    layers apart. In a name that is still longer than ``width``, modules are cut from the left to three letters and
    their number, or to one letter.

    Args:
        names: The names of the layers.
        width: The largest number of characters of a short name.

    Returns:
        The short names, in the same order.

    Example:
        >>> short_names(["net.encoder.stages.0.convs", "net.encoder.stages.1.convs", "net.head"])
        ['enc.stages.0', 'enc.stages.1', 'head']
    """
    shared = shared_path(names)
    cut = [name.removeprefix(f"{shared}.") for name in names]
    return [_abbreviated(_distinct(name, cut), width) for name in cut]


def _distinct(name: str, names: Sequence[str]) -> str:
    """Return the shortest beginning of a path that belongs neither to another layer nor to a module around one."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        start = ".".join(parts[:end])
        if not any(other != name and (other == start or other.startswith(f"{start}.")) for other in names):
            return start
    return name


def _abbreviated(name: str, width: int) -> str:
    parts = name.split(".")
    for letters in (3, 1):
        for index, part in enumerate(parts):
            if len(".".join(parts)) <= width:
                break
            word = part.rstrip("0123456789")
            parts[index] = word[:letters] + part[len(word) :]
    short = ".".join(parts)
    return short if len(short) <= width else "…" + short[1 - width :]

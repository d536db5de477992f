"""A figure of the network, as its U or as a chain, with each layer coloured by its learned rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path

from layertune.errors import ProfileError
from layertune.layers.layer import LayerMap
from layertune.plots.style import FONT, SMALL_FONT, new_axes, rate_norm, short_names, tick_rates
from layertune.rates.profile import LRProfile
from layertune.rates.replay import match_layers

__all__ = ["Layout", "chain_layout", "plot_network", "u_layout"]

# Inches at full size, at which SMALL_FONT fits into the boxes.
WIDTH, HEIGHT, ROW, LEVEL_GAP = 1.06, 0.24, 0.33, 0.1
COLUMN_STEP = 1.5  # distance of the two sides of the U
CHAIN_STEP, CHAIN_ROW = 1.17, 0.42
BAR = 0.1  # thickness of the colour bar
UNTRAINED: dict[str, Any] = {"facecolor": "0.93", "edgecolor": "0.55", "linestyle": (0, (2, 2))}

Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """The places of all parts of the figure, in inches; y grows upwards.

    Attributes:
        centres: The centre of each layer's box, by the layer's name.
        line: The corners of the line behind the boxes, from input to output.
        skips: The start and the end of each skip connection.
        notes: The texts beside the boxes, with their places.
    """

    centres: dict[str, Point]
    line: list[Point]
    skips: tuple[tuple[Point, Point], ...] = ()
    notes: tuple[tuple[Point, str], ...] = ()

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """The left, right, bottom and top edges of the figure."""
        edges = [(x + side * WIDTH / 2, y) for x, y in self.centres.values() for side in (-1, 1)]
        xs, ys = zip(*edges, *self.line, *(point for point, _ in self.notes), strict=True)
        return min(xs) - 0.08, max(xs) + 0.08, min(ys) - HEIGHT * 0.75, max(ys) + HEIGHT * 0.75


def plot_network(
    layers: LayerMap, values: Mapping[str, float] | LRProfile, *, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Draw the network with each layer coloured by its learned rate, on a logarithmic scale.

    A U-Net is drawn as its U: on the left the contracting path, down by resolution level; at the bottom the bottleneck;
    on the right the expanding path, and above it the head. A thin arrow shows the skip connection of each level. A
    network without an expanding path, or with unknown levels, is drawn as a chain in rows. Each box shows the depth of
    the layer and a short name.

    Args:
        layers: The layers of the network.
        values: The rate of each layer by the layer's name, for example ``MetaLR.lrs``; or a profile, of which the rates
            of the last quarter of training are shown. Layers that are missing, or that have the rate 0, are drawn as
            not trained.
        ax: The axes to draw on; they should have the shape of the figure. By default a new figure is made, 3.5 inches
            wide for a U. In smaller axes the font is smaller too.
        label: The label of the colour bar. Default: "learned learning rate".

    Returns:
        The axes; ``ax.figure.savefig("network.pdf")`` saves the figure.

    Raises:
        ProfileError: A value is for a layer that is not in the map, a value is negative or not finite, or no value is
            above 0.

    Example:
        >>> import torch
        >>> from layertune import map_layers
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> ax = plot_network(map_layers(net, torch.empty(1, 1, 8, 8)), {"0": 1e-2, "2": 1e-3})
        >>> [text.get_text() for text in ax.texts]
        ['1', '0', '2', '2']
    """
    rates = _rates_by_layer(layers, values)
    is_u = layers.has_decoder and all(layer.level is not None for layer in layers)
    layout = u_layout(layers) if is_u else chain_layout(layers)
    norm, untrained = rate_norm(list(rates.values())), not all(rates.values())
    left, right, bottom, top = layout.limits
    if ax is None:
        width, height = right - left + 0.7 * is_u, top - bottom + 0.5 * (not is_u) + 0.25 * untrained
        ax, scale = new_axes(width, height), 1.0
    else:
        size = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
        scale = min(1.0, size.width / (right - left), size.height / (top - bottom))
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.set_axis_off()
    _draw_lines(ax, layout, scale)
    _draw_boxes(ax, layers, layout, rates, norm, scale)
    _draw_legend(ax, norm, label or "learned learning rate", untrained=untrained, upright=is_u)
    return ax


def u_layout(layers: LayerMap) -> Layout:
    """Place the boxes of a network with an expanding path: rows by level, and one row per layer within a level."""
    sides = {role: [layer for layer in layers if layer.role == role] for role in ("encoder", "decoder", "bottleneck")}
    centres: dict[str, Point] = {}
    notes = [((-WIDTH / 2 - 0.16, ROW), "level"), ((0.0, ROW), "input")]
    y = 0.0
    for level in sorted({int(layer.level or 0) for layer in layers}):
        down = [layer.name for layer in sides["encoder"] if layer.level == level]
        up = [layer.name for layer in sides["decoder"] if layer.level == level]
        below = [layer.name for layer in sides["bottleneck"] if layer.level == level]
        rows = max(len(down), len(up))
        last = y - (rows - 1) * ROW  # both sides end at this height, so that the skip connection is horizontal
        centres |= {name: (0.0, last + index * ROW) for index, name in enumerate(reversed(down))}
        centres |= {name: (COLUMN_STEP, last + index * ROW) for index, name in enumerate(up)}
        centres |= {name: (COLUMN_STEP / 2, y - (rows + index) * ROW) for index, name in enumerate(below)}
        if rows + len(below):
            notes.append(((-WIDTH / 2 - 0.16, y - (rows + len(below) - 1) * ROW / 2), str(level)))
            y -= (rows + len(below)) * ROW + LEVEL_GAP
    bottom = y + ROW + LEVEL_GAP
    heads = [layer.name for layer in layers if layer.role == "head"]
    centres |= {name: (COLUMN_STEP, (index + 1) * ROW) for index, name in enumerate(heads)}
    end = (len(heads) + 1) * ROW
    line = [(0.0, ROW * 0.7), (0.0, bottom), (COLUMN_STEP, bottom), (COLUMN_STEP, end - ROW * 0.3)]
    notes.append(((COLUMN_STEP, end), "output"))
    skips = [(_right(centres[start]), _left(centres[end])) for start, end in _skips(layers)]
    return Layout(centres, line, tuple(skips), tuple(notes))


def _skips(layers: LayerMap) -> list[tuple[str, str]]:
    """Return the skip connections: the last encoder layer of each level and the decoder layer or head that reads it."""
    skips = []
    for reader in layers:
        if reader.role in ("decoder", "head"):
            last = {
                layer.level: layer.name for layer in layers if layer.role == "encoder" and reader.name in layer.feeds
            }
            skips += [(name, reader.name) for name in last.values()]
    return skips


def _right(centre: Point) -> Point:
    return centre[0] + WIDTH / 2, centre[1]


def _left(centre: Point) -> Point:
    return centre[0] - WIDTH / 2, centre[1]


def chain_layout(layers: LayerMap) -> Layout:
    """Place the boxes in rows that are read like a text: 3 boxes per row, or 6 if there are more than 18 boxes."""
    per_row = 3 if len(layers) <= 18 else 6
    centres: dict[str, Point] = {}
    line: list[Point] = []
    for index, layer in enumerate(layers):
        row, column = divmod(index, per_row)
        point = (column * CHAIN_STEP, -row * CHAIN_ROW)
        if row and not column:
            between = point[1] + CHAIN_ROW / 2
            line += [(line[-1][0], between), (0.0, between)]
        line.append(point)
        centres[layer.name] = point
    return Layout(centres, line)


def _rates_by_layer(layers: LayerMap, values: Mapping[str, float] | LRProfile) -> dict[str, float]:
    rate_of = values.converged() if isinstance(values, LRProfile) else dict(values)
    wrong = {name: value for name, value in rate_of.items() if not 0 <= value < float("inf")}
    if wrong:
        raise ProfileError(f"rates must be finite and at least 0, not {wrong}")
    names = [layer.name for layer in layers]
    rates = dict.fromkeys(names, 0.0)
    for name, column in match_layers(names, rate_of).items():
        rates[names[column]] = float(rate_of[name])
    return rates


def _draw_lines(ax: Axes, layout: Layout, scale: float) -> None:
    thick: dict[str, Any] = {"color": "0.8", "lw": 2.2 * scale, "mutation_scale": 9 * scale, "zorder": 1}
    ax.add_patch(FancyArrowPatch(path=Path(layout.line), arrowstyle="-|>", fill=False, **thick))
    for start, end in layout.skips:
        thin: dict[str, Any] = {"color": "0.35", "lw": 0.7 * scale, "mutation_scale": 6 * scale, "zorder": 2}
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", shrinkA=1, shrinkB=1, **thin))
    for (x, y), text in layout.notes:
        ax.text(x, y, text, ha="center", va="center", fontsize=SMALL_FONT * scale, color="0.35")


def _draw_boxes(
    ax: Axes, layers: LayerMap, layout: Layout, rates: Mapping[str, float], norm: LogNorm, scale: float
) -> None:
    colors = mpl.colormaps["viridis"]
    for layer, name in zip(layers, short_names([layer.name for layer in layers]), strict=True):
        x, y = layout.centres[layer.name]
        rate = rates[layer.name]
        color = colors(norm(rate)) if rate else None
        fill: dict[str, Any] = {"facecolor": color, "edgecolor": "0.2"} if color else UNTRAINED
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        rounded = f"round,pad=0,rounding_size={HEIGHT / 3}"
        ax.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, rounded, lw=0.6 * scale, zorder=3, gid=layer.name, **fill))
        # At a luminance of 0.179 black and white text have the same contrast (WCAG 2.1).
        text_color = "white" if color and _luminance(color) < 0.179 else "black"
        style: dict[str, Any] = {
            "va": "center_baseline",
            "fontsize": SMALL_FONT * scale,
            "color": text_color,
            "zorder": 4,
        }
        ax.text(corner[0] + 0.05, y, str(layer.depth), ha="left", weight="bold", **style)
        ax.text(x + 0.08, y, name, ha="center", **style)


def _luminance(color: tuple[float, float, float, float]) -> float:
    """Return the relative luminance by ITU-R BT.709, with a gamma of 2.2."""
    red, green, blue, _ = color
    return float(0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2)


def _draw_legend(ax: Axes, norm: LogNorm, label: str, *, untrained: bool, upright: bool) -> None:
    mappable = ScalarMappable(norm, mpl.colormaps["viridis"])
    left, right, bottom, top = *ax.get_xlim(), *ax.get_ylim()
    length = 0.8 * (top - bottom if upright else right - left)
    bar = ax.figure.colorbar(
        mappable, ax=ax, location="right" if upright else "bottom", shrink=0.8, aspect=length / BAR, pad=0.02
    )
    bar.set_label(label, fontsize=FONT)
    tick_rates(bar.long_axis, float(norm.vmin or 0), float(norm.vmax or 0))
    bar.ax.tick_params(which="both", labelsize=SMALL_FONT)
    if untrained:
        key = Patch(label="not trained", **UNTRAINED)
        ax.legend(handles=[key], loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=SMALL_FONT, frameon=False)

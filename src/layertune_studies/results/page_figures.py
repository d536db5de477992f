"""The figures of the demo's report, as texts that stand in the page itself: SVG, and PNG in base64 for images."""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from itertools import cycle

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from layertune.plots.style import LINE_COLORS

__all__ = ["examples_png", "learning_curves", "svg"]

TISSUES = ListedColormap([(0, 0, 0, 0), (0.0, 0.45, 0.7, 0.6), (0.9, 0.62, 0.0, 0.6)], "tissues")
SMOOTHING = 5  # steps

Curve = Sequence[tuple[int, float]]


def svg(axes: Axes) -> str:
    """A figure as an SVG element; glyphs are drawn as paths, so that no font has to be there."""
    text = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes were taken off their figure; draw them anew")
    figure.savefig(text, format="svg", bbox_inches="tight", metadata=nothing)
    return text.getvalue()[text.getvalue().index("<svg") :]


def learning_curves(losses: Mapping[str, Sequence[Sequence[float]]], curves: Mapping[str, Sequence[Curve]]) -> Axes:
    """Draw training loss and validation Dice over steps, the mean over seeds.

    Args:
        losses: by method, for each seed the loss of each step.
        curves: by method, for each seed (step, Dice).

    Returns:
        The left of two axes.
    """
    figure = Figure(figsize=(8.5, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for title, color in zip(losses, cycle(LINE_COLORS), strict=False):
        loss = _smooth(np.mean(losses[title], axis=0))
        left.plot(np.arange(1, len(loss) + 1), loss, color=color, label=title, lw=1.2)
        points = np.mean(curves[title], axis=0)
        right.plot(points[:, 0], points[:, 1], color=color, label=title, lw=1.2, marker=".")
    for axes, what in ((left, f"training loss, mean of {SMOOTHING} steps"), (right, "Dice on validation subjects")):
        axes.set(xlabel="optimizer step", ylabel=what)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", lw=0.4, alpha=0.5)
    left.legend(frameon=False, fontsize=8)
    drawn: Axes = left
    return drawn


def _smooth(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean of each value and up to four before it."""
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - SMOOTHING, 0)
    means: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def examples_png(image: Tensor, truth: Tensor, predictions: Mapping[str, Tensor]) -> str:
    """One slice of a case: the image, the truth and what each method makes of it.

    Args:
        image: (1, x, y, z).
        truth: (1, x, y, z), whole numbers from 0.
        predictions: by method, the same.

    Returns:
        A PNG as a data URI.
    """
    level = int((truth[0] > 0).sum(dim=(0, 1)).argmax())
    panels: list[tuple[str, Tensor | None]] = [("Image", None), ("Truth", truth), *predictions.items()]
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.0 * columns, 2.5 * rows), layout="constrained")
    for index, (title, label) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, index)
        axes.imshow(image[0, :, :, level].T.numpy(), cmap="gray", origin="lower")
        if label is not None:
            axes.imshow(label[0, :, :, level].T.numpy(), cmap=TISSUES, vmin=0, vmax=2, origin="lower")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"

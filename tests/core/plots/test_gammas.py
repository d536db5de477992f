"""What the figures show, read back from the artists."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.patches import Polygon
from torch import nn, tensor

from layertune import AlchemyError, gammas, plots
from layertune.alchemy.clip_test import ClipPoint, ClipTest

BEFORE = {"enc.norm": tensor([0.0, 0.1, 0.2, 0.3]), "dec.norm": tensor([-0.4, 0.5])}
AFTER = {"enc.norm": tensor([0.9, 1.0, 1.1, 1.2]), "dec.norm": tensor([0.8, 1.3])}
RESULT = ClipTest(0.80, (ClipPoint(0.1, 2, 0.2, 0.79, (0.5, 0.7)), ClipPoint(0.2, 5, 0.5, 0.70, (0.1, 0.2))), 0.02)


def heights(polygon: Polygon) -> float:
    """The sum of a step histogram's bars."""
    ends = pairwise(polygon.get_xy())
    return float(sum(y for (x, y), (next_x, next_y) in ends if y == next_y and x != next_x))


def test_a_histogram_of_shares() -> None:
    ax = plots.plot_gammas(BEFORE, bins=9)
    steps = [patch for patch in ax.patches if isinstance(patch, Polygon)]
    assert heights(steps[-1]) == pytest.approx(1)
    assert ax.get_legend() is None
    low, high = steps[-1].get_xy()[:, 0].min(), steps[-1].get_xy()[:, 0].max()
    assert (low, high) == pytest.approx((-0.4, 0.5))


def test_before_and_after_share_their_bins_and_show_the_threshold() -> None:
    ax = plots.plot_gammas({"before": BEFORE, "after": AFTER}, threshold=0.05)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]
    band = ax.patches[-1].get_bbox()
    assert (band.x0, band.x1) == pytest.approx((-0.05, 0.05))
    positive = plots.plot_gammas(AFTER, threshold=0.05).patches[-1].get_bbox()
    assert (positive.x0, positive.x1) == pytest.approx((0.0, 0.05))


def test_gammas_that_are_all_equal_have_a_histogram_too() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    assert plots.plot_gammas(gammas(net)).patches
    nn.init.zeros_(net[1].weight)
    assert plots.plot_gammas(gammas(net)).patches


def test_by_layer() -> None:
    ax = plots.plot_gammas_by_layer({"before": BEFORE, "after": AFTER})
    before, after = ax.lines
    assert before.get_ydata() == pytest.approx([0.15, 0.05])
    assert after.get_ydata() == pytest.approx([1.05, 1.05])
    assert after.get_xdata()[0] > before.get_xdata()[0]
    low, high = ax.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(tuple(np.quantile([0.0, 0.1, 0.2, 0.3], [0.1, 0.9])))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["enc", "dec"]


def test_many_layers_are_numbered() -> None:
    ax = plots.plot_gammas_by_layer({f"norm{i}": tensor([1.0]) for i in range(40)})
    assert ax.get_xlabel() == "number of the norm"


def test_a_clip_test() -> None:
    ax = plots.plot_clip_test(RESULT, metric="PPV")
    clipped = next(line for line in ax.lines if line.get_label() == "γ below the threshold")
    assert clipped.get_xydata().tolist() == [[0.1, 0.79], [0.2, 0.70]]
    (random,) = ax.containers
    assert random.lines[0].get_ydata() == pytest.approx([0.6, 0.15])
    band = ax.patches[0].get_bbox()
    assert (band.y0, band.y1) == pytest.approx((0.784, 0.816))
    assert [text.get_text() for text in ax.texts] == ["20%", "50%"]
    assert ax.get_ylabel() == "PPV"


def test_a_rank_correlation(tmp_path: Path) -> None:
    norm_only, full = {"a": 0.1, "b": 0.2, "c": 0.3}, {"c": 0.7, "a": 0.6, "b": 0.9}
    ax = plots.plot_rank_correlation(norm_only, full)
    assert ax.get_title() == "Spearman's ρ = 0.50"
    assert ax.lines[0].get_xydata().tolist() == [[0.1, 0.6], [0.2, 0.9], [0.3, 0.7]]
    ax.figure.savefig(tmp_path / "rank.pdf")
    assert (tmp_path / "rank.pdf").stat().st_size > 1000
    with pytest.raises(AlchemyError, match=r"differ: \['c', 'd'\]"):
        plots.plot_rank_correlation(norm_only, {"a": 1, "b": 2, "d": 3})


@pytest.mark.parametrize("draw", [plots.plot_gammas, plots.plot_gammas_by_layer])
def test_nothing_to_show(draw: Callable[..., Any]) -> None:
    for nothing in ({}, {"before": {}}):
        with pytest.raises(AlchemyError, match="no gammas to show"):
            draw(nothing)
    with pytest.raises(AlchemyError, match="gammas of enc are not finite"):
        draw({"enc": torch.full((2,), float("nan"))})


def test_gammas_of_different_networks() -> None:
    with pytest.raises(AlchemyError, match="different networks"):
        plots.plot_gammas_by_layer({"a": BEFORE, "b": {"enc.norm": tensor([1.0])}})

"""The figures of the hippocampus study of Network Alchemy."""

from statistics import median
from typing import Any

from matplotlib.figure import Figure

from layertune import gammas
from layertune.alchemy.clip_test import ClipPoint, ClipTest
from layertune.plots.gammas import plot_clip_test, plot_gammas, plot_gammas_by_layer, plot_rank_correlation
from layertune_studies.hippocampus_alchemy_training import Phases, start
from layertune_studies.hippocampus_alchemy_work import Workshop

__all__ = ["draw_figures"]

TITLE = 9  # points
NAME = "hippocampus_alchemy"


def draw_figures(results: dict[str, Any], shop: Workshop, checkpoints: dict[str, Any]) -> None:
    """Draw all figures into the study's folder: gammas and clip tests of the first seed, ranks over the seeds done."""
    first = results["seeds"][0]
    figures = {
        "gammas": _norm_only_gammas(first, shop, checkpoints),
        "after": _gammas_after(first, shop, Phases(True, True, results["plan"]["weights"][0])),
        "clip": _clips(first),
        "ranks": _ranks(results["seeds"]),
    }
    for name, figure in figures.items():
        figure.savefig(shop.store.folder / f"{NAME}_{name}.png", dpi=150)


def _norm_only_gammas(seed: dict[str, Any], shop: Workshop, checkpoints: dict[str, Any]) -> Figure:
    """Fig. 3.2: each start before and after norm-only training, over all layers and layer by layer."""
    names = list(seed["penalty"])
    figure = Figure(figsize=(10.2, 5.2), layout="constrained")
    axes = figure.subplots(2, len(names), sharex="row", sharey="row")
    for column, name in enumerate(names):
        found = {
            "before": gammas(start(shop.plan, checkpoints[name], seed=0)),
            "after": gammas(shop.network(seed["norms"][name]["piece"])),
        }
        plot_gammas(found, ax=axes[0, column]).set_title(f"{name}, norms alone trained", fontsize=TITLE)
        plot_gammas_by_layer(found, ax=axes[1, column])
    return figure


def _gammas_after(seed: dict[str, Any], shop: Workshop, phases: Phases) -> Figure:
    """Fig. 4.1: after the identification, and after fine-tuning without and with Network Alchemy."""
    found = {
        "identified": gammas(shop.network(seed["norms"]["other"]["piece"])),
        "fine-tuned": gammas(shop.network(seed["full"]["other"]["piece"])),
        "Network Alchemy": gammas(shop.network(seed["phases"][phases.name]["piece"])),
    }
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots(1, 2)
    plot_gammas(found, ax=axes[0])
    plot_gammas_by_layer(found, ax=axes[1])
    return figure


def _clips(seed: dict[str, Any]) -> Figure:
    """Fig. 3.1: small against random gammas, for each start and training."""
    figure = Figure(figsize=(10.2, 5.2), layout="constrained")
    rows = figure.subplots(2, len(seed["clips"]["full"]))
    for row, (kind, title) in zip(rows, (("norms", "norms alone trained"), ("full", "all trained")), strict=True):
        for axes, (name, held) in zip(row, seed["clips"][kind].items(), strict=True):
            points = tuple(ClipPoint(**{**point, "random": tuple(point["random"])}) for point in held["points"])
            plot_clip_test(ClipTest(held["baseline"], points, held["band"]), ax=axes)
            axes.set_title(f"{name}, {title}", fontsize=TITLE)
    return figure


def _ranks(seeds: list[dict[str, Any]]) -> Figure:
    """Tab. 4.3 and sec. 4.4: norm-only training, and the ranking's, against training of all; medians over seeds."""
    names = list(seeds[0]["full"])
    full = {name: median(seed["full"][name]["dice"] for seed in seeds) for name in names}
    norms = {name: median(seed["norms"][name]["dice"] for seed in seeds) for name in names}
    ranked = {name: median(seed["ranking"]["metrics"][name] for seed in seeds) for name in names}
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    plot_rank_correlation(norms, full, ax=axes[0])
    plot_rank_correlation(ranked, full, ax=axes[1]).set_xlabel("Dice (validation), ranking", fontsize=8)
    return figure

"""What nnU-Net's trainers learned in the hippocampus study: on the network, and over depth."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from layertune import LayerMap, LRProfile, map_layers
from layertune.hosts.report import PROFILE
from layertune.plots.network import plot_network
from layertune.plots.rates import plot_lrs_over_depth
from layertune_nnunet.tools.planned_network import planned_network

__all__ = ["FIGURE", "draw"]

FIGURE = "hippocampus_nnunet.png"


def draw(out: Path, folds: Mapping[str, Path]) -> None:
    """Draw the learned rates into ``out``.

    Args:
        out: the folder for the figure.
        folds: name -> where nnU-Net keeps that training; the first is drawn on the network.
    """
    profiles = {name: LRProfile.load(folder / PROFILE) for name, folder in folds.items()}
    model = next(iter(folds.values())).parent
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    name, first = next(iter(profiles.items()))
    plot_network(_layers(model), first, ax=left)
    left.set_title(name, fontsize=9)
    plot_lrs_over_depth(profiles, ax=right)
    figure.savefig(out / FIGURE, dpi=150)


def _layers(model: Path) -> LayerMap:
    made = planned_network(model / "plans.json", model / "dataset.json", "3d_fullres")
    return map_layers(made.network, made.example)

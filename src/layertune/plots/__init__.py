"""Figures: learned rates over layers and time, the network as its U, gammas, and the clip test."""

from layertune.plots.gammas import plot_clip_test, plot_gammas, plot_gammas_by_layer, plot_rank_correlation
from layertune.plots.network import plot_network
from layertune.plots.rates import plot_lrs_over_depth, plot_lrs_over_time, plot_profile

__all__ = [
    "plot_clip_test",
    "plot_gammas",
    "plot_gammas_by_layer",
    "plot_lrs_over_depth",
    "plot_lrs_over_time",
    "plot_network",
    "plot_profile",
    "plot_rank_correlation",
]

"""The line about gammas in nnU-Net's log, and the figure of the gammas.

The figure of the learned rates is drawn in ``layertune_nnunet.trainers.learned_rates``.
"""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from layertune.plots.gammas import plot_gammas
from layertune.plots.saving import save_figure

__all__ = ["GAMMAS", "draw_gammas", "gamma_line"]

GAMMAS = "gammas.png"
"""File name of the figure that the trainers about gammas write after each epoch."""


def gamma_line(gammas: Mapping[str, Tensor], threshold: float | None = None) -> str:
    """Describe the gammas of all norms in one line.

    Args:
        gammas: The gammas of each norm, as ``layertune.gammas`` returns them.
        threshold: With a threshold, the line also says how many |gamma| are below it.

    Example:
        >>> gamma_line({"norm": torch.tensor([-0.01, 0.5, 1.0, 1.5])}, 0.05)
        'gammas from -0.01 to 1.5, median 0.5; 1 of 4 (25.0 %) have |gamma| < 0.05'
    """
    values = torch.cat([gamma.flatten() for gamma in gammas.values()]).cpu()
    text = f"gammas from {values.min():.3g} to {values.max():.3g}, median {values.median():.3g}"
    if threshold is None:
        return text
    small = int((values.abs() < threshold).sum())
    share = f"{100 * small / len(values):.1f} %"
    return f"{text}; {small} of {len(values)} ({share}) have |gamma| < {threshold:g}"


def draw_gammas(named: Mapping[str, Mapping[str, Tensor]], threshold: float | None, folder: Path) -> None:
    """Draw the distribution of gammas.

    Args:
        named: The gammas of one or more moments, as ``layertune.gammas`` returns them, by their names in the legend.
        threshold: The |gamma| below which kernels count as redundant, or None.
        folder: The folder that gets ``gammas.png``.

    Raises:
        AlchemyError: A gamma is not finite.
    """
    # nnU-Net sets seaborn's style, with letters of 25 points, for the whole process.
    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        plot_gammas(named, threshold=threshold, ax=figure.subplots())
        save_figure(figure, folder / GAMMAS, dpi=150)

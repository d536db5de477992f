"""The report of the learned rates that a host writes when a training ends: a profile and a figure."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from layertune.errors import ProfileError
from layertune.plots.rates import plot_profile
from layertune.plots.saving import save_figure
from layertune.rates.profile import LRProfile

__all__ = ["FIGURE", "PROFILE", "draw_figure", "write_figure", "write_report"]

PROFILE = "learned_rates.json"
"""File name of the profile in every host; ``layertune.LRProfile.load`` reads it."""

FIGURE = "learned_rates.png"
"""File name of the figure in every host."""

Warn = Callable[[str], Any]
"""A function that shows one sentence to the user."""


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def write_report(profile: LRProfile, folder: str | Path, *, warn: Warn = _warn) -> bool:
    """Write the profile and its figure into a folder.

    A report that cannot be written does not end a training; the user is told once instead.

    Args:
        profile: The rates that were learned.
        folder: The folder for ``learned_rates.json`` and ``learned_rates.png``. It is made if it does not exist.
        warn: The host's way to show a warning, called with one sentence. Default: ``warnings.warn``.

    Returns:
        Whether both files were written.

    Example:
        >>> from tempfile import mkdtemp
        >>> profile = LRProfile(("stem", "head"), (1, 2), (1, 2), [[1, 1], [2, 1]], [[1e-2, 1e-2], [2e-2, 1e-2]])
        >>> folder = mkdtemp()
        >>> write_report(profile, folder), sorted(file.name for file in Path(folder).iterdir())
        (True, ['learned_rates.json', 'learned_rates.png'])
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        profile.save(folder / PROFILE)
    except OSError as error:
        warn(f"the learned rates were not written to {folder}: {error}")
        return False
    return write_figure(profile, folder / FIGURE, warn=warn)


def write_figure(profile: LRProfile, file: str | Path, *, warn: Warn = _warn) -> bool:
    """Write the figure of the learned rates alone, as a host does that draws it after each epoch.

    Args:
        profile: The rates that were learned.
        file: The file to write, in any format that matplotlib knows by its suffix. Its folder is made if needed.
        warn: The host's way to show a warning, called with one sentence. Default: ``warnings.warn``.

    Returns:
        Whether the figure was written.
    """
    file = Path(file)

    def save(figure: Figure) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, file, bbox_inches="tight", dpi=150)

    return draw_figure(profile, save, warn=warn)


def draw_figure(profile: LRProfile, show: Callable[[Figure], Any], *, warn: Warn = _warn) -> bool:
    """Draw the learned rates over depth and over time, and hand the figure to a file or a logger.

    Args:
        profile: The rates that were learned.
        show: A function that takes the figure, for example to save it or to send it to a logger.
        warn: The host's way to show a warning, called with one sentence. Default: ``warnings.warn``.

    Returns:
        Whether ``show`` got a figure and took it.
    """
    # Some hosts set a style for the whole process: nnU-Net sets seaborn's, with letters of 25 points.
    with mpl.rc_context():
        mpl.rcdefaults()
        try:
            show(plot_profile(profile))
        except (ProfileError, OSError) as error:  # a ProfileError where each rate is 0, as at the end of a schedule
            warn(f"no figure of the learned rates was drawn: {error}")
            return False
    return True

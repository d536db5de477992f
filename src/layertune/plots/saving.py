"""Save a figure in a file."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from layertune.files import write_file

__all__ = ["save_figure"]


def save_figure(figure: Figure, path: str | Path, **options: Any) -> None:
    """Save a figure whole or not at all, so that a viewer never opens half a file.

    Args:
        figure: The figure, of any size.
        path: The file. Its suffix gives the format, as in ``gammas.pdf``; without a suffix the format is PNG.
        **options: Options for ``Figure.savefig``, for example ``dpi``.

    Raises:
        SaveError: The file cannot be written.
        ValueError: matplotlib does not write files with this suffix.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "empty.svg")
        >>> save_figure(Figure(), file)
        >>> "<svg" in file.read_text()
        True
    """
    path = Path(path)
    # The temporary file has another name, so matplotlib cannot read the format off it.
    write_file(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png", **options))

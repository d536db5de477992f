"""The output of commands: tables and texts for a reader, JSON for a program."""

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Json", "cell", "hosts_to_stderr", "print_json", "print_table", "printable", "show"]

FILE_WIDTH = 200  # columns in a file or a pipe: a search does not find a name that is broken over two lines

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]


@contextmanager
def hosts_to_stderr() -> Iterator[None]:
    """Redirect what hosts print to the standard error stream, and silence their deprecation warnings.

    The standard output then holds nothing but a command's own result, which a program may read.
    """
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def printable(text: str) -> str:
    r"""Replace control characters other than line breaks and tabs by their escapes.

    Names in a checkpoint are somebody else's text. Written raw, an escape sequence in them would command the terminal.

    Example:
        >>> printable("layer\x1b[2J")
        'layer\\x1b[2J'
    """
    return "".join(
        character if character in "\n\t" or character.isprintable() else ascii(character)[1:-1] for character in text
    )


def cell(value: Any) -> str:
    """Format a value for a table: a dash for None, three decimals for a float."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> None:
    """Print a table.

    Args:
        title: The title, above the table.
        headings: The headings of the columns.
        rows: The rows, one text for each column. Texts are printed as they are and never read as Rich's markup.
        left: The number of columns, from the left, that are aligned to the left; the others hold numbers.
    """
    table = Table(title=Text(printable(title)), title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    show(table)


def show(content: Table | Text) -> None:
    """Print a table or a text on the standard output.

    A text keeps its lines in a narrow terminal. A file or a pipe gets wide lines.
    """
    if isinstance(content, Text):
        content.plain = printable(content.plain)
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    Console(width=width).print(content, soft_wrap=isinstance(content, Text))


def print_json(value: Any) -> None:
    """Print a value as JSON.

    Values of a type that JSON does not have are written as strings, and NaN and infinity as ``null``.
    """
    typer.echo(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

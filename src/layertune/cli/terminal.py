"""The output of commands: tables and texts for a reader, JSON for a program."""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Json", "cell", "hosts_to_stderr", "print_json", "print_table", "show"]

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
    table = Table(title=Text(title), title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    show(table)


def show(content: Table | Text) -> None:
    """Print a table or a text on the standard output.

    A text keeps its lines in a narrow terminal. A file or a pipe gets wide lines.
    """
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    Console(width=width).print(content, soft_wrap=isinstance(content, Text))


def print_json(value: Any) -> None:
    """Print a value as JSON; values of a type that JSON lacks are written as strings."""
    typer.echo(json.dumps(value, indent=2, default=str))

"""What a command shows: tables and texts for a reader, JSON for a program, and hosts' chatter out of the way."""

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

__all__ = ["Json", "aside", "cell", "print_json", "print_table", "show"]

FILE_WIDTH = 200  # columns of a file or pipe, where a name that is cut cannot be searched for

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]


@contextmanager
def aside() -> Iterator[None]:
    """Let what hosts print go to the standard error stream, and keep their deprecations to their developers."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def cell(value: Any) -> str:
    """A value in a table: a dash for none, three decimals for a number."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> None:
    """Print a table whose first ``left`` columns are texts; names are shown as they are, never read as markup."""
    table = Table(title=Text(title), title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    show(table)


def show(what: Table | Text) -> None:
    """Print on the standard output; a text keeps its lines, however narrow the terminal, and a file is wide."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    Console(width=width).print(what, soft_wrap=isinstance(what, Text))


def print_json(value: Any) -> None:
    """Print for a program; what JSON does not know is written as its text."""
    typer.echo(json.dumps(value, indent=2, default=str))

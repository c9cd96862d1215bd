"""How commands print: tables for people, JSON for scripts, one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows; a pipe gets tab-separated lines without wrapping."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in ([heading.upper() for heading in headings], *texts):
            typer.echo("\t".join(line))
        return
    grid = Table(*[heading.upper() for heading in headings], box=box.SIMPLE_HEAD, pad_edge=False)
    for row in texts:
        grid.add_row(*[Text(cell) for cell in row])
    Console().print(grid)


def as_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def complain(error: Exception) -> None:
    """Print an error's message on stderr, as the command line's own."""
    typer.echo(f"mlx-farm: {error}", err=True)

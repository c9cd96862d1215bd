"""`mlx-farm ls` and `ps`: the models that can be asked for, and what is loaded where."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import typer

from farm import flags, output
from farm.client import Client


def ls(as_json: flags.Json = False) -> None:
    """List the models that this farm serves."""
    answer = Client.from_environment().get("/v1/models")
    if as_json:
        output.as_json(answer)
        return
    rows = [[m["id"], m.get("owned_by"), output.pick(m, "max_model_len", "context_tokens")] for m in rows_of(answer)]
    output.table(["model", "owner", "context"], rows)


def ps(as_json: flags.Json = False) -> None:
    """List workers and the models loaded on them."""
    client = Client.from_environment()
    models, workers = client.get("/admin/models/status"), client.get("/admin/workers")
    if as_json:
        output.as_json({"models": rows_of(models), "workers": rows_of(workers)})
        return
    for title, rows in (("models", rows_of(models)), ("workers", rows_of(workers))):
        typer.echo(f"{title}: {len(rows)}")
        if rows:
            _print(rows)


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """The list in an answer: the answer itself, or the one list in it."""
    if isinstance(answer, list):
        return answer
    return next((value for value in answer.values() if isinstance(value, list)), [])


def moment(seconds: Any) -> str:
    """A time in seconds since 1970 (or as text) in the local zone."""
    if not isinstance(seconds, int | float):
        return str(seconds or "")
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print(rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_cell(value)))
    output.table(names, [[_cell(row.get(name)) for name in names] for row in rows])


def _is_cell(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str("" if value is None else value)

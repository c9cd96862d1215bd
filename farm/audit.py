"""`mlx-farm audit …`, `db …`: the record in SQL, through the API where that will do, else `python -m scheduler`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from farm import flags, output, roles
from farm.client import Client
from farm.errors import UsageRefused
from farm.listings import moment, rows_of

DEFAULT_LIMIT = 50
COLUMNS = ("id", "state", "model", "lane", "prompt_tokens", "output_tokens", "ttft_ms")

app = typer.Typer(name="audit", help="Ask the record of all requests.", no_args_is_help=True)
database = typer.Typer(name="db", help="The database's schema.", no_args_is_help=True)
app.command("rebuild")(roles.audit_rebuild)
database.command("upgrade")(roles.db_upgrade)
database.command("current")(roles.db_current)


@app.command()
def query(
    sql: Annotated[str | None, typer.Argument(metavar="[SELECT …]", help="A read-only query on the database.")] = None,
    model: Annotated[str | None, typer.Option(help="Only requests of this model.")] = None,
    since: Annotated[str | None, typer.Option(help="Only requests since then: 2026-11-20, 15m, 24h, 7d.")] = None,
    status: Annotated[str | None, typer.Option(help="finished, failed, cancelled, …")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default="50; SQL: 1000")] = None,
    as_json: flags.Json = False,
    home: flags.Home = None,
    database_url: flags.DatabaseUrl = None,
) -> None:
    """Ask the record: with SQL directly in the database, or with filters through the API."""
    filters = {"model": model, "since": since, "status": status}
    if sql is not None:
        if any(filters.values()):
            raise UsageRefused("Give either a query or filters: --model, --since and --status are part of the SELECT.")
        options = [*(["--json"] if as_json else []), *(["--limit", str(limit)] if limit else [])]
        roles.become("scheduler", "sql", *options, "--", sql, settings={"home": home, "database_url": database_url})
    answer = Client.from_environment().get("/v1/audit/requests", {**filters, "limit": limit or DEFAULT_LIMIT})
    if as_json:
        output.as_json(answer)
        return
    rows = [
        [*(row.get(name) for name in COLUMNS), _total_ms(row), moment(row["submitted_ms"] / 1000)]
        for row in rows_of(answer)
    ]
    output.table([*(name.replace("_", " ") for name in COLUMNS), "total ms", "submitted"], rows)


def _total_ms(row: Mapping[str, Any]) -> int | None:
    return row["ended_ms"] - row["submitted_ms"] if row.get("ended_ms") else None

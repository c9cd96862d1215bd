"""`mlx-farm ls` and `ps`: the models that can be asked for, and what is loaded where."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from farm import flags, output, roles
from farm.client import Client

MODEL_COLUMNS = (
    *("name", "state", "adapters", "engine", "context_tokens", "parameters", "running", "waiting"),
    *("used_blocks", "cached_blocks", "total_blocks", "prefix_hit_rate", "workers"),
)
PLACE_COLUMNS = ("model", "state", "pinned", "needs_mib", "jobs", "waiting", "unloads_in_s", "failed", "agent")
WORKER_COLUMNS = ("worker", "model", "engine", "host", "pid", "jobs", "running", "waiting", "tokens_per_s")


def ls(
    local: Annotated[
        bool, typer.Option("--local", help="Those on this machine's disk, also half pulled ones.")
    ] = False,
    as_json: flags.Json = False,
) -> None:
    """List the models that this farm serves."""
    if local:
        roles.become("workers.gallery.shelf", *(["--json"] if as_json else []))
    answer = Client.from_environment().get("/v1/models")
    if as_json:
        output.as_json(answer)
        return
    names = ("id", "parent", "owned_by", "max_model_len")
    rows = [[_cell(model.get(name)) for name in names] for model in rows_of(answer)]
    output.table(["model", "adapter of", "owner", "context"], rows)


def ps(as_json: flags.Json = False) -> None:
    """List workers and the models loaded on them."""
    client = Client.from_environment()
    models, workers = client.get("/admin/models/status"), client.get("/admin/workers")
    agents = rows_of(client.get("/admin/models/agents"))
    if as_json:
        output.as_json({"models": rows_of(models), "workers": rows_of(workers), "agents": agents})
        return
    places = {"data": [_place(agent, row) for agent in agents for row in agent["models"]]}
    tables = [(MODEL_COLUMNS, models), (WORKER_COLUMNS, workers), *([(PLACE_COLUMNS, places)] if agents else [])]
    for names, answer in tables:
        rows = [[_cell(row.get(name)) for name in names] for row in rows_of(answer)]
        output.table([name.replace("_", " ") for name in names], rows)


def _place(agent: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A model on an agent, as a row."""
    used = f"{agent['used_bytes'] >> 20} of {agent['budget_bytes'] >> 20} MiB"
    return row | {"needs_mib": row["needs_bytes"] >> 20, "agent": f"{agent['agent']} ({used})"}


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


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return str(sum(value.values()))
    return f"{value:g}" if isinstance(value, float) else str("" if value is None else value)

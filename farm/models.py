"""`mlx-farm load`, `unload`, `pin` and `unpin`: models that are loaded by demand, by hand."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from farm import flags, output
from farm.client import Client
from farm.errors import CommandError

POLL_S = 0.2
MIB = 1 << 20

Agent = Annotated[
    str | None, typer.Option("--agent", help="On this machine's agent (mlx-farm ps); else where it takes least.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name that the farm knows: mlx-farm ls.")]


def load(
    model: Model,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whether it fits, and who would go.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is loaded.")] = True,
    agent: Agent = None,
    as_json: flags.Json = False,
) -> None:
    """Load a model now; one that has failed is tried again."""
    client = Client.from_environment()
    answer = client.post("/admin/models/load", _asked(model, agent) | {"dry_run": dry_run})
    if not as_json:
        typer.echo(_fit(answer))
    if dry_run and answer["why_not"]:
        raise CommandError(f"{model} does not fit: {answer['why_not']}.")
    if wait and not dry_run:
        answer |= _until_loaded(client, model, quiet=as_json)
    if as_json:
        output.as_json(answer)


def unload(model: Model, agent: Agent = None, as_json: flags.Json = False) -> None:
    """Give up a model's memory; its jobs finish or wait, and bring it back."""
    _order("unload", _asked(model, agent), as_json)


def pin(model: Model, agent: Agent = None, as_json: flags.Json = False) -> None:
    """Load a model and keep it in memory, whoever waits."""
    _order("pin", _asked(model, agent), as_json)


def unpin(model: Model, agent: Agent = None, as_json: flags.Json = False) -> None:
    """Treat a model like any other again."""
    _order("unpin", _asked(model, agent), as_json)


def _asked(model: str, agent: str | None) -> dict[str, Any]:
    return {"model": model} | ({"agent": agent} if agent else {})


def _order(action: str, asked: dict[str, Any], as_json: bool) -> None:
    answer = Client.from_environment().post(f"/admin/models/{action}", asked)
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"{asked['model']}: {answer['state']}{', pinned' if answer['pinned'] else ''}")


def _fit(answer: dict[str, Any]) -> str:
    """What loading a model takes, in one line."""
    needs = f"{answer['model']} needs {'' if answer['measured'] else 'about '}{answer['needs_bytes'] // MIB} MiB"
    free = f"{answer['free_bytes'] // MIB} of {answer['budget_bytes'] // MIB} MiB are free"
    gone = f"; for it would go: {', '.join(answer['would_evict'])}" if answer["would_evict"] else ""
    return f"{needs}, {free}{gone}."


def _until_loaded(client: Client, model: str, *, quiet: bool) -> dict[str, Any]:
    """Follow a model until it is loaded. Raises CommandError where it fails."""
    said = ""
    while True:
        rows = client.get("/admin/models/status")["data"]
        place = next((row["place"] for row in rows if row["name"] == model), None) or {}
        state = str(place.get("state", "unknown"))
        if state == "loaded":
            if not quiet:
                typer.echo(f"{model}: loaded")
            return {"state": state}
        if state == "failed":
            raise CommandError(f"{model} could not be loaded: {place['failed']}.")
        says = f"{model}: {state}" + (f" for {place['waits_for']}" if place.get("waits_for") else "")
        if says != said and not quiet:
            typer.echo(says)
        said = says
        time.sleep(POLL_S)

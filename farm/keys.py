"""`mlx-farm keys …`: who may use the farm, and for what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from farm import flags, output, roles
from farm.client import Client, segment
from farm.errors import UsageRefused
from farm.listings import moment, rows_of

app = typer.Typer(name="keys", help="Keys of the API: make, list, rotate, revoke.", no_args_is_help=True)

COLUMNS = ("id", "name", "tenant", "role", "state")
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `ls` shows it: fk_…")]
Limit = Annotated[int | None, typer.Option(min=0, help="0: none.", show_default="the setting's")]
Here = Annotated[
    bool, typer.Option("--here", help="An admin's key, written into the database itself: where no key is at hand.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of whom, or of what, the key is.")],
    tenant: Annotated[str, typer.Option(help="Whose jobs, files and records it sees.")] = "default",
    role: Annotated[str | None, typer.Option(help="client, viewer, operator or admin.", show_default="client")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may ask for; repeatable.")] = None,
    lane: Annotated[list[str] | None, typer.Option(help="A lane; the first serves what names none.")] = None,
    expires_in: Annotated[str | None, typer.Option(metavar="90d", help="Ends after so long: s, m, h or d.")] = None,
    requests_per_minute: Limit = None,
    input_tokens_per_minute: Limit = None,
    output_tokens_per_minute: Limit = None,
    tokens_per_day: Limit = None,
    concurrent_jobs: Limit = None,
    here: Here = False,
    as_json: flags.Json = False,
    home: flags.Home = None,
    database_url: flags.DatabaseUrl = None,
) -> None:
    """Make a key. Its text is shown here and never again. A farm's first key is an admin's."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "input_tokens_per_minute": input_tokens_per_minute,
        "output_tokens_per_minute": output_tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "concurrent_jobs": concurrent_jobs,
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if here:
        if role not in (None, "admin") or model or lane or expires_in or given:
            raise UsageRefused("--here makes an admin's key without terms; with it make the others, through the API.")
        where = {"home": home, "database_url": database_url}
        roles.become("scheduler", "key", name, "--tenant", tenant, *(["--json"] if as_json else []), settings=where)
    body: dict[str, Any] = {"name": name, "tenant": tenant, "role": role or "client", "limits": given}
    body |= {"models": model or [], "lanes": lane or []}
    if expires_in:
        body["expires_in_s"] = seconds(expires_in)
    _show(Client.from_environment().post("/admin/keys", body), as_json)


@app.command("ls")
def list_keys(as_json: flags.Json = False) -> None:
    """List all keys by their ids, ended ones too."""
    answer = Client.from_environment().get("/admin/keys")
    if as_json:
        output.as_json(answer)
        return
    rows = [[*(key.get(name) for name in COLUMNS), _terms(key), _ends(key)] for key in rows_of(answer)]
    output.table([*COLUMNS, "terms", "ends"], rows)


@app.command()
def rotate(
    key: KeyId,
    grace: Annotated[str, typer.Option(metavar="24h", help="The old text is taken for so long: s, m, h or d.")] = "0s",
    as_json: flags.Json = False,
) -> None:
    """Give a key a new text, shown here and never again."""
    _show(Client.from_environment().post(f"/admin/keys/{segment(key)}/rotate", {"grace_s": seconds(grace)}), as_json)


@app.command()
def revoke(key: KeyId, as_json: flags.Json = False) -> None:
    """End a key for good, on every node within a second."""
    answer = Client.from_environment().post(f"/admin/keys/{segment(key)}/revoke")
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"{answer['id']} ({answer['name']}): {answer['state']}")


def seconds(text: str) -> int:
    """`90d` in seconds. Raises UsageRefused."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise UsageRefused(f"{text!r} is no duration: write 90d, 12h, 30m or 45s.")
    return int(found[1]) * UNITS_S[found[2]]


def _show(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        output.as_json(answer)
        return
    typer.echo(answer["key"])
    typer.echo(f"Keep it: it is not shown again. {answer['role']} of {answer['tenant']}, id {answer['id']}", err=True)


def _terms(key: Mapping[str, Any]) -> str:
    limits = [f"{name}={limit}" for name, limit in (key.get("limits") or {}).items()]
    return ", ".join([*(key.get("models") or []), *(key.get("lanes") or []), *limits])


def _ends(key: Mapping[str, Any]) -> str:
    ended_ms = key.get("revoked_ms") or key.get("expires_ms")
    return moment(ended_ms / 1000) if ended_ms else ""

"""`mlx-farm pull`, `rm`, `search`, `recommend`: models on a disk, this machine's or, with --node, another node's."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from farm import flags, output, roles
from farm.client import Client, segment
from farm.errors import CommandError

POLL_S = 0.5
PULL_COLUMNS = ("pull", "node", "model", "state", "here", "error")

Name = Annotated[
    str, typer.Argument(metavar="MODEL", help="OWNER/NAME or OWNER/NAME@REVISION, of the Hugging Face hub.")
]
Node = Annotated[
    str | None,
    typer.Option(metavar="NODE", help="On a node of the farm; 'any' where there is one.", show_default="this machine"),
]


def pull(
    name: Name,
    node: Node = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read again what is here already, and check it.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Download a model, or go on where that was cut. Ctrl-C stops it; what has come is kept."""
    if node is None:
        options = [*(["--verify"] if verify else []), *(["--json"] if as_json else [])]
        roles.become("workers.gallery.pulling", *options, "--", name)
    if verify:
        raise CommandError("--verify is for this machine: run it on the node itself.")
    client = Client.from_environment()
    begun = client.post("/admin/gallery/pulls", {"model": name, "node": None if node == "any" else node})
    try:
        ended = _follow(client, begun["id"], quiet=as_json)
    except KeyboardInterrupt:
        client.post(f"/admin/gallery/pulls/{segment(begun['id'])}/cancel")
        raise CommandError(f"Stopped. What has come is kept: mlx-farm pull {name} goes on from there.") from None
    if as_json:
        output.as_json(ended)
    if ended["state"] != "done":
        raise CommandError(f"{name}: {ended['error'] or ended['state']}")


def pulls(as_json: flags.Json = False) -> None:
    """List the pulls of all nodes, under way and ended."""
    answer = Client.from_environment().get("/admin/gallery/pulls")
    if as_json:
        output.as_json(answer)
        return
    rows = [[row["id"], row["node"], row["model"], row["state"], _here(row), row["error"]] for row in answer["data"]]
    output.table(PULL_COLUMNS, rows)


def rm(name: Name, as_json: flags.Json = False) -> None:
    """Remove a model from this machine's disk: all of it, or one revision."""
    roles.become("workers.gallery.shelf", "rm", *(["--json"] if as_json else []), "--", name)


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Part of a name.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many at most.")] = 20,
    any_format: Annotated[bool, typer.Option("--any-format", help="Also what is not for MLX.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Search the Hugging Face hub for models; where it is away, those on this disk."""
    options = [*(["--any-format"] if any_format else []), *(["--json"] if as_json else [])]
    roles.become("workers.gallery.searching", "--limit", str(limit), *options, "--", text)


def recommend(
    context: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Context that has to fit.")] = 8192,
    as_json: flags.Json = False,
    home: flags.Home = None,
) -> None:
    """Say which models fit this machine, and how fast they can be at most."""
    options = ["--context-tokens", str(context), *(["--json"] if as_json else [])]
    roles.become("workers.gallery.advising", *options, settings={"home": home})


def _follow(client: Client, pull_id: str, *, quiet: bool) -> dict[str, Any]:
    """Until it has ended."""
    said = ""
    while True:
        row: dict[str, Any] = client.get(f"/admin/gallery/pulls/{segment(pull_id)}")
        says = f"{row['model']} on {row['node']}: {row['state']} {_here(row)}".rstrip()
        if says != said and not quiet:
            typer.echo(says)
        if row["ended_ms"] is not None:
            return row
        said = says
        time.sleep(POLL_S)


def _here(row: dict[str, Any]) -> str:
    """`1.2 of 4.0 GB`, once that is known."""
    if not row["total_bytes"]:
        return ""
    return f"{row['done_bytes'] / 1e9:.2f} of {row['total_bytes'] / 1e9:.2f} GB"

"""`mlx-farm batch submit|ls|get|results|cancel`: batches that the farm runs by itself, while nobody waits."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from farm import flags, output
from farm.client import Client, segment
from farm.errors import CommandError, UsageRefused
from farm.listings import moment, rows_of

ENDED = ("completed", "failed", "expired", "cancelled")
POLL_S = 2.0
UPLOAD_LIMIT_S = 3600.0

BatchId = Annotated[str, typer.Argument(metavar="ID", help="Id of the batch.")]


def submit(
    requests: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one JSON object per line.")],
    endpoint: Annotated[
        str | None, typer.Option(metavar="PATH", help="Endpoint of all lines.", show_default="the first line's url")
    ] = None,
    window: Annotated[str, typer.Option(metavar="TIME", help="When it must have ended: 90m, 24h, 3d.")] = "24h",
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A note; may be repeated.")] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Where to tell of the end.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Upload IN.jsonl (OpenAI's batch format) and let the farm run it; prints the batch's id."""
    client = Client.from_environment(timeout_s=UPLOAD_LIMIT_S)
    asked: dict[str, Any] = {"endpoint": endpoint or _first_url(requests), "completion_window": window}
    if metadata:
        asked["metadata"] = _pairs(metadata)
    asked["input_file_id"] = client.upload("/v1/files", requests, {"purpose": "batch"})["id"]
    batch = client.post("/v1/batches", asked, {"Farm-Webhook": webhook} if webhook else None)
    if wait:
        batch = _wait(client, batch)
    if as_json:
        output.as_json(batch)
    else:
        typer.echo(batch["id"])
    if wait and batch["status"] != "completed":
        raise CommandError(f"The batch is {batch['status']}.{_problems(batch)}")


def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many, newest first.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Continue behind this batch.")] = None,
    as_json: flags.Json = False,
) -> None:
    """List batches, newest first."""
    answer = Client.from_environment().get("/v1/batches", {"limit": limit, "after": after})
    if as_json:
        output.as_json(answer)
        return
    rows = [_row(batch) for batch in rows_of(answer)]
    output.table(["id", "status", "completed", "failed", "total", "model", "created", "until"], rows)
    if answer["has_more"]:
        typer.echo(f"more: --after {answer['last_id']}", err=True)


def get(batch: BatchId) -> None:
    """Show everything about a batch, as JSON."""
    output.as_json(Client.from_environment().get(f"/v1/batches/{segment(batch)}"))


def results(
    batch: BatchId,
    target: Annotated[
        Path | None, typer.Argument(metavar="[OUT.jsonl]", help="Where to; the screen if not given.")
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="The lines that failed instead of those that did not.")
    ] = False,
) -> None:
    """Fetch the results of an ended batch, one line per answered request."""
    client = Client.from_environment()
    found = client.get(f"/v1/batches/{segment(batch)}")
    if found["status"] not in ENDED:
        raise CommandError(f"Batch {batch} is {found['status']}; its results come at its end.")
    file_id = found["error_file_id" if errors else "output_file_id"]
    pieces = client.download(f"/v1/files/{segment(file_id)}/content") if file_id else iter(())
    if target is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    try:
        with target.open("wb") as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise CommandError(f"Cannot write {target}: {error.strerror}.") from error
    counts = found["request_counts"]
    typer.echo(f"{counts['completed']} answered, {counts['failed']} failed: {target}", err=True)


def cancel(batch: BatchId, as_json: flags.Json = False) -> None:
    """Stop a batch; what is done is kept."""
    answer = Client.from_environment().post(f"/v1/batches/{segment(batch)}/cancel")
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"{answer['id']} {answer['status']}")


COMMANDS: dict[str, Callable[..., None]] = {
    "submit": submit,
    "ls": list_batches,
    "get": get,
    "results": results,
    "cancel": cancel,
}


def _wait(client: Client, batch: dict[str, Any]) -> dict[str, Any]:
    shown = ""
    while batch["status"] not in ENDED:
        time.sleep(POLL_S)
        batch = client.get(f"/v1/batches/{segment(batch['id'])}")
        counts = batch["request_counts"]
        line = f"{batch['status']}: {counts['completed']} answered, {counts['failed']} failed of {counts['total']}"
        if line != shown:
            typer.echo(line, err=True)
            shown = line
    return batch


def _row(batch: dict[str, Any]) -> list[Any]:
    counts = batch["request_counts"]
    times = [moment(batch["created_at"]), moment(batch["expires_at"])]
    return [
        batch["id"],
        batch["status"],
        *(counts[name] for name in ("completed", "failed", "total")),
        batch["model"],
        *times,
    ]


def _first_url(requests: Path) -> str:
    """The url of the first request."""
    try:
        with requests.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
        value = json.loads(first)
    except OSError as error:
        raise UsageRefused(f"Cannot read {requests}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageRefused(f"The first line of {requests} is not JSON: {error}") from error
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str):
        raise UsageRefused(f"The first line of {requests} has no url, such as /v1/chat/completions.")
    return url


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = dict(item.partition("=")[::2] for item in items)
    if not all(pairs) or any("=" not in item for item in items):
        raise UsageRefused("--metadata is KEY=VALUE.")
    return pairs


def _problems(batch: dict[str, Any]) -> str:
    errors = (batch.get("errors") or {}).get("data") or []
    return "".join(f"\nline {error['line']}: {error['message']}" for error in errors[:20])

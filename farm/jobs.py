"""`mlx-farm jobs …`: list, look at, follow and cancel jobs; run dead ones again or discard them."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from farm import flags, output
from farm.chat import text_of
from farm.client import DONE, Client, ConnectionLost, ServerEvent, segment
from farm.errors import CommandError, Unreachable, UsageRefused
from farm.listings import moment, rows_of

app = typer.Typer(name="jobs", help="List, look at, follow, cancel and retry jobs.", no_args_is_help=True)
OneJob = Annotated[str | None, typer.Argument(metavar="[ID]", help="Id of the job; or --all.")]
COLUMNS = ("id", "state", "model", "lane", "attempts", "output_tokens")
RECONNECT_S = 1.0
RECONNECT_LIMIT_S = 60.0

DEAD_COLUMNS = ("id", "model", "attempts", "crashes")

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]


@app.command("ls")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, finished, failed, cancelled, …")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="CURSOR", help="Continue where a list ended.")] = None,
    as_json: flags.Json = False,
) -> None:
    """List jobs, newest first."""
    query = {"limit": limit, "after": after, "state": state, "model": model}
    answer = Client.from_environment().get("/v1/jobs", query)
    if as_json:
        output.as_json(answer)
        return
    rows = [[*(job.get(name) for name in COLUMNS), moment(job.get("created_at"))] for job in rows_of(answer)]
    output.table([*COLUMNS, "created"], rows)
    if answer.get("next"):
        typer.echo(f"more: --after {answer['next']}", err=True)


@app.command()
def get(job: JobId) -> None:
    """Show everything about a job, as JSON."""
    output.as_json(Client.from_environment().get(f"/v1/jobs/{segment(job)}"))


@app.command()
def cancel(job: JobId, as_json: flags.Json = False) -> None:
    """Cancel a job, wherever it is; a job that has ended stays as it is."""
    answer = Client.from_environment().post(f"/v1/jobs/{segment(job)}/cancel")
    if as_json:
        output.as_json(answer)
    else:
        typer.echo(f"{job}: {answer['state']}")


@app.command()
def dead(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the longest dead first.")] = 20,
    as_json: flags.Json = False,
) -> None:
    """List dead jobs: those that workers died on, or that failed, too often."""
    answer = Client.from_environment().get("/v1/jobs/dead", {"limit": limit})
    if as_json:
        output.as_json(answer)
        return
    rows = [
        [*(job.get(name) for name in DEAD_COLUMNS), (job.get("error") or {}).get("message")] for job in rows_of(answer)
    ]
    output.table([*DEAD_COLUMNS, "error"], rows)
    if answer.get("has_more"):
        typer.echo(f"more than {limit}: raise --limit", err=True)


@app.command()
def retry(
    job: OneJob = None,
    all_dead: Annotated[bool, typer.Option("--all", help="Every dead job.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Run an ended job once more under a new id, or all dead ones; a dead job leaves the list with it."""
    client = Client.from_environment()
    if _one(job, all_dead):
        answer = client.post(f"/v1/jobs/{segment(job or '')}/retry")
        _tell(answer, as_json, [f"{job}: again as {answer['id']}"])
        return
    answer = client.post("/v1/jobs/dead/retry")
    _tell(answer, as_json, [f"{entry['id']}: again as {entry['new_id']}" for entry in answer["retried"]])
    for entry in answer["failed"]:
        typer.echo(f"{entry['id']}: {entry['error']['message']}", err=True)
    if answer["failed"]:
        raise typer.Exit(1)


@app.command()
def discard(
    job: OneJob = None,
    all_dead: Annotated[bool, typer.Option("--all", help="Every dead job.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Discard a dead job, or all: what is kept of it goes after the usual time."""
    client = Client.from_environment()
    if _one(job, all_dead):
        _tell(client.post(f"/v1/jobs/{segment(job or '')}/discard"), as_json, [f"{job}: discarded"])
        return
    answer = client.post("/v1/jobs/dead/discard")
    _tell(answer, as_json, [f"{job_id}: discarded" for job_id in answer["discarded"]])


@app.command()
def tail(
    job: JobId,
    after: Annotated[str, typer.Option(metavar="EVENT", help="Begin behind this event id.")] = "",
    as_json: flags.Json = False,
) -> None:
    """Follow a job's output from its beginning to its end, across lost connections."""
    client = Client.from_environment()
    last, lost_at, heard = after, 0.0, False
    try:
        while True:
            try:
                for event in client.stream("GET", _events(job), headers={"Last-Event-ID": last} if last else {}):
                    lost_at, heard = 0.0, True
                    if event.data:
                        _check(event)
                        last = event.id or last
                        _show(event, as_json)
                break
            except (ConnectionLost, Unreachable) as error:
                if not heard:
                    raise
                lost_at = _wait_to_reconnect(error, lost_at)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not as_json:
        typer.echo()


def _one(job: str | None, all_dead: bool) -> bool:
    """Is it one job? Raises UsageRefused for both and for neither."""
    if (job is None) != all_dead:
        raise UsageRefused("Name one job, or say --all.")
    return job is not None


def _tell(answer: Any, as_json: bool, lines: list[str]) -> None:
    if as_json:
        output.as_json(answer)
        return
    for line in lines:
        typer.echo(line)
    if answer.get("has_more"):
        typer.echo("there are more; say it again", err=True)


def _events(job: str) -> str:
    return f"/v1/jobs/{segment(job)}/events"


def _check(event: ServerEvent) -> None:
    """Raise what the node, not the job, has to say (it is stopping, its queue is away): another connection goes on."""
    if event.is_last and event.data != DONE and not event.id:
        raise ConnectionLost(str(json.loads(event.data)["error"].get("message", "")))


def _show(event: ServerEvent, as_json: bool) -> None:
    if event.data == DONE:
        return
    if as_json:
        typer.echo(json.dumps({"id": event.id, "data": json.loads(event.data)}, ensure_ascii=False))
        return
    data: dict[str, Any] = json.loads(event.data)
    sys.stdout.write(text_of(data))
    sys.stdout.flush()


def _wait_to_reconnect(error: CommandError, lost_at: float) -> float:
    """Say it once, wait; return when the connection was lost first. Raises the error when it stays away."""
    now = time.monotonic()
    if not lost_at:
        typer.echo(f"{error} Trying again …", err=True)
        lost_at = now
    if now - lost_at > RECONNECT_LIMIT_S:
        raise error
    time.sleep(RECONNECT_S)
    return lost_at

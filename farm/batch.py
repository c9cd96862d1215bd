"""`mlx-farm batch run`: every line of a file through the farm, in the low lane, many at a time, each written once.

Threads send; the main thread alone writes. A second start continues where the first one stopped, however it stopped.
"""

from __future__ import annotations

import json
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.batch_files import BatchLine, RequestFile, ResultFile
from farm.batch_progress import Progress
from farm.client import Answer, Client, ConnectionLost, error_message
from farm.errors import CommandError, Unreachable, UsageRefused

app = typer.Typer(
    name="batch",
    help="Run many requests from a file: here (run), or by the farm itself (submit).",
    no_args_is_help=True,
)

RESPONSE_LIMIT_S = 3600.0
DEFAULT_RETRY_S = 2.0
MAX_RETRY_S = 60.0
SHOWN_PROBLEMS = 20
_RETRIED = frozenset({408, 425, 429, 502, 503, 504})
_CONFLICT = 409
_REFUSED = frozenset({401, 403})


@app.callback()
def batch() -> None:
    """Run many requests from a file."""


@app.command()
def run(
    requests: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one JSON object per line.")],
    results: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Results; an existing file is continued.")],
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests in flight.")] = 16,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Leave out lines that cannot be sent.")] = False,
) -> None:
    """Send every line of IN.jsonl (OpenAI's batch format) and write one line per answer to OUT.jsonl.

    Start it again after an interruption: it continues. Exit code 1 when some lines got an error.
    """
    source = _checked(requests, results, skip_invalid)
    client = Client.from_environment()
    client.get("/v1/models")  # is there a farm, and does it take our key?
    target = ResultFile(results)
    _warn_of_strangers(source, target, results)
    try:
        _work_through(source, target, concurrency)
    except KeyboardInterrupt:
        left = len(source.custom_ids.keys() - target.done.keys())
        typer.echo(f"Interrupted: {left} lines are left. The same command continues.", err=True)
        raise typer.Exit(130) from None
    finally:
        target.close()
    failed = sum(target.done[name] >= 400 for name in source.custom_ids)
    typer.echo(f"{len(source.custom_ids) - failed} answered, {failed} failed: {results}", err=True)
    if failed:
        raise typer.Exit(1)


class Crew:
    """Threads that take lines and put answers into `answers`, each its own connection, until told to stop."""

    def __init__(self, lines: Iterator[BatchLine], progress: Progress) -> None:
        self.answers: queue.SimpleQueue[dict[str, Any] | CommandError | KeyboardInterrupt] = queue.SimpleQueue()
        self._lines = lines
        self._taking = threading.Lock()
        self._stopping = threading.Event()
        self._progress = progress

    def start(self, threads: int) -> None:
        """Begin; the threads end with the process."""
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    def interrupt(self, number: int, frame: object) -> None:
        """Handles signals: an interrupt waits its turn behind the answers, so that none of them is lost."""
        self.answers.put(KeyboardInterrupt())

    def stop(self) -> None:
        """Send no more."""
        self._stopping.set()

    def _work(self) -> None:
        broken: CommandError | None = CommandError("A sender ended by an internal error; see above.")
        try:
            client = Client.from_environment(timeout_s=RESPONSE_LIMIT_S)
            while (line := self._take()) and not self._stopping.is_set():
                answer = self._answer(client, line)
                if answer is not None:
                    self.answers.put(result(line, answer))
            broken = None
        except CommandError as error:
            broken = error
        finally:  # the main thread waits for one answer per line, so it has to hear of any end
            if broken is not None:
                self.answers.put(broken)

    def _take(self) -> BatchLine | None:
        with self._taking:
            return next(self._lines, None)

    def _answer(self, client: Client, line: BatchLine) -> Answer | None:
        """Send until there is an answer that counts; None when asked to stop."""
        headers = {"Farm-Lane": "low", "Idempotency-Key": line.key}
        attempt = 0
        while not self._stopping.is_set():
            try:
                answer = client.send("POST", line.url, line.body, headers)
            except (Unreachable, ConnectionLost) as error:
                delay_s, why = min(DEFAULT_RETRY_S * 2 ** min(attempt, 5), MAX_RETRY_S), str(error)
            else:
                if answer.status in _REFUSED:
                    raise CommandError(f"{error_message(answer)} (HTTP {answer.status}). Set FARM_API_KEY.")
                if answer.status == _CONFLICT and attempt == 0:  # begun by an earlier start, but its result has expired
                    headers["Idempotency-Key"], attempt = f"{line.key}-again", 1
                    continue
                if answer.status not in _RETRIED:
                    return answer
                delay_s, why = retry_after_s(answer), f"{error_message(answer)} (HTTP {answer.status})"
            attempt += 1
            self._progress.waiting(why, delay_s)
            self._stopping.wait(delay_s)
        return None


def result(line: BatchLine, answer: Answer) -> dict[str, Any]:
    """One line of the result file."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        body = {"error": {"message": error_message(answer)}}
    request_id = answer.headers.get("x-request-id", "")
    response = {"status_code": answer.status, "request_id": request_id, "body": body}
    return {"id": f"batch_req_{line.key[:24]}", "custom_id": line.custom_id, "response": response, "error": None}


def retry_after_s(answer: Answer) -> float:
    """How long the farm asks to wait."""
    try:
        return min(max(float(answer.headers["retry-after"]), 0.1), MAX_RETRY_S)
    except (KeyError, ValueError):
        return DEFAULT_RETRY_S


def _work_through(source: RequestFile, target: ResultFile, concurrency: int) -> None:
    already = source.custom_ids.keys() & target.done.keys()
    left = len(source.custom_ids) - len(already)
    with Progress(total=len(source.custom_ids), done=len(already)) as progress:
        crew = Crew(source.requests(set(already)), progress)
        signal.signal(signal.SIGINT, crew.interrupt)
        signal.signal(signal.SIGTERM, crew.interrupt)
        crew.start(min(concurrency, left))
        try:
            while left:
                answer = crew.answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                target.append(answer)
                progress.advance()
                left -= 1
        finally:
            crew.stop()
            while not crew.answers.empty():  # what has arrived is kept
                answer = crew.answers.get()
                if not isinstance(answer, BaseException):
                    target.append(answer)


def _checked(requests: Path, results: Path, skip_invalid: bool) -> RequestFile:
    """The input, or UsageRefused with the list of its bad lines."""
    if requests.resolve() == results.resolve():
        raise UsageRefused("IN.jsonl and OUT.jsonl are the same file.")
    source = RequestFile(requests, results)
    source.check()
    for problem in source.invalid[:SHOWN_PROBLEMS]:
        typer.echo(f"{requests} line {problem.number}: {problem.reason}", err=True)
    if len(source.invalid) > SHOWN_PROBLEMS:
        typer.echo(f"… and {len(source.invalid) - SHOWN_PROBLEMS} more", err=True)
    if source.invalid and not skip_invalid:
        raise UsageRefused(f"{len(source.invalid)} invalid lines; nothing was sent. --skip-invalid leaves them out.")
    return source


def _warn_of_strangers(source: RequestFile, target: ResultFile, results: Path) -> None:
    strangers = target.done.keys() - source.custom_ids.keys()
    if strangers:
        example = next(iter(strangers))
        typer.echo(f"{results} has {len(strangers)} results that the input lacks, such as {example!r}.", err=True)

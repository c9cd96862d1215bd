"""What `batch run` shows while it works: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0


class Progress:
    """Counts lines. `waiting` may be called from any thread."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._done = done
        self._said_at = time.monotonic()
        self._waiting_said_at = 0.0
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            self._bar = Bar(
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=total, completed=done)
        if done:
            self._say(f"{done} of {total} lines are already there; continuing")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self) -> None:
        """One more line is written."""
        self._done += 1
        if self._bar:
            self._bar.update(self._task, advance=1, description="")
        elif time.monotonic() - self._said_at > LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._say(f"{self._done} of {self._total}")

    def waiting(self, why: str, delay_s: float) -> None:
        """A request has to wait; shown at most once every few seconds."""
        now = time.monotonic()
        if now - self._waiting_said_at < LINE_EVERY_S / 2:
            return
        self._waiting_said_at = now
        self._say(f"{why.rstrip('.')}; trying again in {delay_s:g} s")

    def _say(self, what: str) -> None:
        if self._bar:
            self._bar.console.print(what, markup=False, highlight=False)
        else:
            typer.echo(what, err=True)

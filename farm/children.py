"""One child process of `serve`: started in its own session, heard line by line, restarted when it dies, stopped whole.

Its stdin is a pipe that only the supervisor holds: at its end the child knows that the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

from farm.errors import CommandError

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0
"""A child that ran this long has earned a fresh back-off."""
MAX_LOG_BYTES = 32 * 2**20
_READY = "READY "
_PROBE_EVERY_S = 0.01
_HURRIED_GRACE_S = 1.0
_CANNOT_START = 127


class ChildFailed(CommandError):
    """A child ended before it was ready."""

    def __init__(self, name: str, exit_code: int, last_lines: Sequence[str], log_file: Path) -> None:
        tail = "".join(f"\n  {line}" for line in last_lines)
        ended = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        super().__init__(f"The {name} did not start ({ended}). Its last lines:{tail}\nAll of them: {log_file}")


@dataclass(frozen=True, kw_only=True)
class Role:
    """What to start and how to treat it. `probe` asks a child that prints no READY line; `echo` shows its output."""

    name: str
    argv: Sequence[str]
    grace_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    probe: Callable[[], bool] | None = None
    echo: bool = True
    watches_stdin: bool = True


class _LogFile(RotatingFileHandler):
    """A log that a full disk interrupts and does not break."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line."""


class Output:
    """Where children's lines go: the console (prefixed when it is one) and one rotating file each."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._prefixed = sys.stderr.isatty()

    def file(self, name: str) -> Path:
        """The log file of a child."""
        return self._logs / f"{name}.log"

    def open(self, name: str) -> logging.Handler:
        """A handler that appends lines to the child's file."""
        return _LogFile(self.file(name), maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")

    def echo(self, name: str, line: str) -> None:
        """Show one line of a child; a reader of ours that has gone away must not stop the farm."""
        with suppress(OSError):
            sys.stderr.write(f"{name:<9} │ {line}\n" if self._prefixed else f"{line}\n")
            sys.stderr.flush()


class Child:
    """Keeps one role running. Use from one event loop; threads read its output."""

    def __init__(self, role: Role, output: Output) -> None:
        self.role = role
        self.environment = dict(role.environment)
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._output = output
        self._last_lines: deque[str] = deque(maxlen=5)
        self._stopping = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin; `ready` resolves to the child's READY data, or raises ChildFailed."""
        self._task = asyncio.create_task(self._keep_running(), name=self.role.name)

    async def stop(self, hurry: asyncio.Event) -> None:
        """SIGTERM, then SIGKILL to the whole group after the grace time (1 s once `hurry` is set)."""
        self._stopping.set()
        if self._task is None:
            return
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({self._task, hurried}, timeout=self.role.grace_s, return_when=asyncio.FIRST_COMPLETED)
        if not self._task.done():
            await asyncio.wait({self._task}, timeout=_HURRIED_GRACE_S if hurry.is_set() else 0)
        hurried.cancel()
        if not self._task.done() and self._process is not None:
            _kill_group(self._process.pid)
        await self._task

    async def _keep_running(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            exit_code = await self._run_once()
            if self._stopping.is_set():
                return
            if not self.ready.done():
                log_file = self._output.file(self.role.name)
                self.ready.set_exception(ChildFailed(self.role.name, exit_code, list(self._last_lines), log_file))
                self.ready.exception()  # seen, so that asyncio does not complain when another child failed first
                return
            if time.monotonic() - started > STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            self._say(f"ended unexpectedly (code {exit_code}); starting it again in {backoff_s:g} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _run_once(self) -> int:
        """Start the process, see it through to its end, leave nothing of its group behind; return its exit code."""
        try:
            self._process = process = _spawn(self.role.argv, self.environment)
        except OSError as error:
            self._last_lines.append(f"{self.role.argv[0]}: {error.strerror}")
            return _CANNOT_START
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        threading.Thread(target=self._see_through, args=(process, loop, ended), daemon=True).start()
        if self.role.probe is not None:
            threading.Thread(target=self._probe, args=(process, loop), daemon=True).start()
        if self.role.watches_stdin:
            return await ended
        guard = _guard(process.pid)
        try:
            return await ended
        finally:
            _end_guard(guard)

    def _probe(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: ask until the child answers or ends."""
        assert self.role.probe is not None
        while process.poll() is None:
            if self.role.probe():
                loop.call_soon_threadsafe(self._became_ready, {})
                return
            time.sleep(_PROBE_EVERY_S)

    def _became_ready(self, data: dict[str, Any]) -> None:
        if not self.ready.done():
            self.ready.set_result(data)
        else:
            self._say("is ready again")

    def _see_through(
        self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, ended: asyncio.Future[int]
    ) -> None:
        """In a thread of its own: read both pipes to their ends and wait."""
        handler = self._output.open(self.role.name)
        assert process.stdout is not None
        assert process.stderr is not None

        def on_line(line: str) -> None:
            if line.startswith(_READY):
                with suppress(ValueError):
                    data = json.loads(line.removeprefix(_READY))
                    loop.call_soon_threadsafe(self._became_ready, data)
                    return
            self._hear(handler, line)

        pumps = [
            threading.Thread(target=_pump, args=(process.stdout, on_line), daemon=True),
            threading.Thread(target=_pump, args=(process.stderr, lambda line: self._hear(handler, line)), daemon=True),
        ]
        for pump in pumps:
            pump.start()
        exit_code = process.wait()
        _kill_group(process.pid)
        for pump in pumps:
            pump.join(timeout=2.0)
        handler.close()
        if process.stdin is not None:
            process.stdin.close()
        loop.call_soon_threadsafe(ended.set_result, exit_code)

    def _hear(self, handler: logging.Handler, line: str) -> None:
        self._last_lines.append(line)
        handler.emit(logging.LogRecord(self.role.name, logging.INFO, "", 0, line, None, None))
        if self.role.echo:
            self._output.echo(self.role.name, line)

    def _say(self, what: str) -> None:
        self._output.echo("serve", f"{self.role.name} {what}")


def _pump(pipe: IO[bytes], on_line: Callable[[str], None]) -> None:
    with pipe:
        for line in pipe:
            on_line(line.decode(errors="replace").rstrip("\n"))


def _spawn(argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _guard(pid: int) -> subprocess.Popen[bytes]:
    """A shell that stops `pid` when this process is gone, for a child that does not watch its own stdin.

    It waits long enough for the others to write their last words first.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; sleep 2; kill -TERM "$0"', str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    guard.kill()
    guard.wait()
    if guard.stdin is not None:
        guard.stdin.close()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)

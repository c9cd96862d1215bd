"""What every process of the farm does alike: logs to stderr, one READY line on stdout, and an orderly stop.

A supervised child (FARM_SUPERVISED=1) also stops when its standard input ends: its parent is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import structlog

EXIT_MODEL = 4
"""A model process's word for: the model cannot be loaded, starting again would not help."""


def configure_logs(level: str, log_format: str) -> None:
    """Send structlog and the standard library's logs to stderr, as console lines or JSON."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping().get(level.upper(), 20)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


def announce_ready(**facts: Any) -> None:
    """Print the READY line that a supervisor waits for."""
    sys.stdout.write(f"READY {orjson.dumps(facts).decode()}\n")
    sys.stdout.flush()


def stop_event() -> asyncio.Event:
    """An event that SIGTERM, SIGINT or the death of a supervising parent sets. Call it inside the running loop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    watch_parent(lambda: loop.call_soon_threadsafe(stop.set))
    return stop


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: Python 3.11 can lose a cancellation in wait_for, which redis-py uses."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)


def watch_parent(orphaned: Callable[[], object]) -> None:
    """Call `orphaned` (from a thread) when standard input ends, if a supervisor started this process."""
    if os.environ.get("FARM_SUPERVISED") == "1":
        threading.Thread(target=_read_to_end, args=(orphaned,), name="parent-watch", daemon=True).start()


def _read_to_end(orphaned: Callable[[], object]) -> None:
    while os.read(0, 4096):
        pass
    with open(os.devnull, "wb") as nowhere:  # whoever read our output has gone too: a log line must not break the stop
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    orphaned()

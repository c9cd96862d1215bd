"""How the agents' processes begin: settings, logs, run, and an exit code.

0 stopped in order, 1 the servers are not such as the farm runs on, 2 refused its settings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop
from pydantic import ValidationError

from scheduler.errors import UnsupportedServer
from scheduler.process import configure_logs
from scheduler.settings import FarmSettings

S = TypeVar("S", bound=FarmSettings)


def run_process(read_settings: Callable[[], S], serve: Callable[[S], Coroutine[Any, Any, int]]) -> int:
    """Run `serve` to its end; the exit code. What the user can mend is told on stderr."""
    try:
        settings = read_settings()
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logs(settings.log_level, settings.log_format)
    try:
        return uvloop.run(serve(settings))
    except UnsupportedServer as error:
        sys.stderr.write(f"{error}\n")
        return 1

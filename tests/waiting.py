"""How tests wait: for a condition, with patience for machines that stall; how long it took is never a failure."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.patience import tries

PATIENCE_S = 150.0
"""For what has to happen; a whole test may take twice as long (faulthandler_timeout)."""


def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """Ask until the answer is true, and return it."""
    for _ in tries(timeout_s):
        if answer := condition():
            return answer
    return None


async def until_async(condition: Callable[[], Awaitable[Any] | Any], timeout_s: float = PATIENCE_S) -> Any:
    """The same in an event loop, for conditions of either kind."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.005)

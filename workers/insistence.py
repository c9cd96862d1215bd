"""Running work waits out an outage of the queue: it is never given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from scheduler.errors import QueueUnavailable

log = structlog.get_logger()
T = TypeVar("T")


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat an idempotent call until Redis answers."""
    delay_s = 0.05
    while True:
        try:
            return await call()
        except QueueUnavailable as error:
            log.warning("queue unavailable, trying again", error=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 1.0)

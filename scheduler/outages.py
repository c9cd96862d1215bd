"""What Redis may answer when it cannot serve now, as one error of ours; what is our own fault stays what it is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from scheduler.errors import QueueUnavailable, RecordUnavailable

log = structlog.get_logger()

_CODES = re.compile(r"\b(OOM|MISCONF|READONLY|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|BUSY|UNKILLABLE)\b")
_CLASSES = (OutOfMemoryError, ReadOnlyError, NoPermissionError)
"""Error codes, and redis-py's classes for others, of a server that cannot serve now. A pipeline and Redis 6.2's scripts
put the code inside another message."""


@asynccontextmanager
async def redis_errors() -> AsyncIterator[None]:
    """Turn what a down, loading, full or read-only Redis raises into QueueUnavailable; other refusals are our bugs."""
    try:
        yield
    except RedisError as error:
        if _is_our_bug(error):
            raise
        raise QueueUnavailable(str(error) or type(error).__name__) from error
    except OSError as error:
        raise QueueUnavailable(str(error)) from error


async def look_for_ever(look: Callable[[], Awaitable[object]], period_s: float, what: str) -> None:
    """Repeat a look that begins where the last one stopped; an outage of the queue or of the record only delays it."""
    while True:
        try:
            await look()
        except (QueueUnavailable, RecordUnavailable) as error:
            log.warning(f"{what} waits", error=str(error))
        await asyncio.sleep(period_s)


def _is_our_bug(error: RedisError) -> bool:
    if not isinstance(error, ResponseError) or isinstance(error, _CLASSES):
        return False
    return _CODES.search(str(error)) is None

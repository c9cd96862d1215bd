"""Redis clients with the time limits that their use needs."""

from __future__ import annotations

from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError


def command_client(url: str) -> Redis:
    """For commands that answer at once: a Redis that is down is noticed within a second or two."""
    # every command of ours may be repeated: a pooled connection that a restart has cut costs nobody an error
    retry = Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))
    client: Redis = Redis.from_url(
        url,
        socket_connect_timeout=1.0,
        socket_timeout=2.0,
        health_check_interval=15,
        retry=retry,
        retry_on_error=[ConnectionError],
        redis_connect_func=_without_delay,
    )
    return client


def blocking_client(url: str) -> Redis:
    """For blocking reads and pub/sub, which may be silent for as long as they like."""
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    client: Redis = Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=None, **keepalive)
    return client


async def _without_delay(connection: Connection) -> None:
    """Commands leave at once: uvloop would hold small writes back until every task that is ready has had its turn."""
    assert connection._writer is not None
    connection._writer.transport.set_write_buffer_limits(high=0)
    await connection.on_connect()

"""Redis clients with the time limits that their use needs."""

from __future__ import annotations

from redis.asyncio import Redis


def command_client(url: str) -> Redis:
    """For commands that answer at once: a Redis that is down is noticed within a second or two."""
    client: Redis = Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=2.0, health_check_interval=15)
    return client


def blocking_client(url: str) -> Redis:
    """For blocking reads and pub/sub, which may be silent for as long as they like."""
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    client: Redis = Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=None, **keepalive)
    return client

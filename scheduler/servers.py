"""Is this Redis one that the farm can run on? Asked once when a process starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from scheduler.addresses import Kind, read_address
from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable, UnsupportedServer
from scheduler.outages import redis_errors

log = structlog.get_logger()

OLDEST = (6, 2)


async def require_server(url: str) -> None:
    """Raise UnsupportedServer for what cannot hold a queue, warn of what may lose one.

    A server that does not answer now is no reason not to start. Raises ValueError for a URL that is none.
    """
    try:
        info = await look(url)
    except QueueUnavailable as error:
        log.warning("not able to look at the queue's server", error=str(error))
        return
    for warning in risks(info):
        log.warning("the queue's server may lose jobs", why=warning)


async def look(url: str) -> Mapping[str, Any]:
    """A server's INFO, of a cluster the youngest primary's. Raises UnsupportedServer, QueueUnavailable, ValueError."""
    redis = command_client(url)
    try:
        async with redis_errors():
            info: Mapping[str, Any] = await redis.info()
    except QueueUnavailable as error:
        if "cluster support disabled" in str(error):
            raise UnsupportedServer("it is no cluster, but FARM_REDIS_URL is redis+cluster://: use redis://") from error
        raise
    finally:
        await redis.aclose()
    require_supported(info, clustered=read_address(url).kind is Kind.CLUSTER)
    return info


def require_supported(info: Mapping[str, Any], *, clustered: bool) -> None:
    """Judge a server by its INFO: raise UnsupportedServer where the scripts cannot run."""
    version = str(info.get("valkey_version") or info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise UnsupportedServer(f"its version is {version}; the farm needs Redis 6.2 or newer, or Valkey")
    if int(info.get("cluster_enabled", 0)) and not clustered:
        raise UnsupportedServer("it is a node of a cluster: set FARM_REDIS_URL to redis+cluster://host:port,…")


def risks(info: Mapping[str, Any]) -> list[str]:
    """What a server's INFO says against trusting it with jobs, with what to do about it."""
    found = []
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        found.append("it drops keys when memory is short: CONFIG SET maxmemory-policy noeviction")
    if not info.get("aof_enabled", 1):
        found.append("it forgets everything when it restarts: CONFIG SET appendonly yes")
    return found

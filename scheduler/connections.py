"""Redis clients with the time limits that their use needs, for one server, sentinels or a cluster."""

from __future__ import annotations

import asyncio
import socket
import sys
from functools import cache
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError

from scheduler.addresses import Address, Kind, read_address
from scheduler.clusters import ClusterClient

CONNECT_S = 1.0
ANSWER_S = 2.0

MOST_CONNECTIONS = 32
"""Of one client for commands, to one server: who comes when all are in use waits for one."""

TCP_KEEPALIVE_OF_MACOS = 0x10
"""Its word for TCP_KEEPIDLE (xnu, bsd/netinet/tcp.h)."""

SILENT_S, PROBE_S, PROBES = 5, 2, 3
"""A silent connection is probed by the kernel after this time, and is dead after so many probes without an answer."""


def command_client(url: str) -> Redis:
    """For commands that answer at once: a Redis that is down is noticed within a second or two. Raises ValueError."""
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": ANSWER_S,
        "max_connections": MOST_CONNECTIONS,
        "health_check_interval": 15,
        # every command of ours may be repeated: a pooled connection that a restart has cut costs nobody an error
        "retry": Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        "retry_on_error": [ConnectionError],
        "redis_connect_func": _without_delay,
    }
    return _client(read_address(url), options)


def blocking_client(url: str) -> Redis:
    """For blocking reads and pub/sub, which may be silent for as long as they like. Raises ValueError."""
    options: dict[str, Any] = {"socket_connect_timeout": CONNECT_S, "socket_timeout": None}
    if not url.startswith("unix:"):
        options |= {"socket_keepalive": True, "socket_keepalive_options": _probing()}
    return _client(read_address(url), options)


def connection_pool(url: str) -> ConnectionPool:
    """For a client of somebody else's, of one server or of sentinels. Raises ValueError for a cluster."""
    address = read_address(url)
    if address.kind is Kind.CLUSTER:
        raise ValueError("a cluster has no pool of connections")
    return _pool(address, {})


def _client(address: Address, options: dict[str, Any]) -> Redis:
    if address.kind is Kind.CLUSTER:
        return ClusterClient(address.nodes, lambda host, port: _node(address, host, port, options))
    client: Redis = Redis.from_pool(_pool(address, options))
    return client


def _node(address: Address, host: str, port: int, options: dict[str, Any]) -> Redis:
    tls: dict[str, Any] = {"connection_class": SSLConnection} if "ssl" in address.options else {}
    given = {name: value for name, value in address.options.items() if name not in ("ssl", "db")}
    client: Redis = Redis.from_pool(_Pool(host=host, port=port, **tls, **options | given))
    return client


def _pool(address: Address, options: dict[str, Any]) -> ConnectionPool:
    if address.kind is Kind.SERVER:
        return _Pool.from_url(address.url, **options | address.options)
    limits = {"socket_connect_timeout": CONNECT_S, "socket_timeout": ANSWER_S}
    sentinels = _Sentinels(address.nodes, sentinel_kwargs=limits | address.sentinel_options)  # type: ignore[no-untyped-call]
    return _SentinelPool(address.service, sentinels, **options | address.options)


@cache
def _noticing(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Connections of this kind that say what redis-py expects when the server has closed them meanwhile."""

    class Noticing(kind):  # type: ignore[misc, valid-type]
        async def connect(self) -> None:
            try:
                await super().connect()
            except RuntimeError as error:  # uvloop's for a transport that is closed
                await self.disconnect(nowait=True)
                raise ConnectionError(str(error)) from error

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            try:
                await super().send_packed_command(command, check_health)
            except RuntimeError as error:
                raise ConnectionError(str(error)) from error

    return Noticing


class _Pool(ConnectionPool):
    """redis-py 5 connects one by one, under a lock: where Redis is cut off, each request would wait for all before.

    Here up to `max_connections` are made at a time, and nobody is refused because all are in use.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.connection_class = _noticing(self.connection_class)  # type: ignore[arg-type]
        self._free = asyncio.Semaphore(self.max_connections)

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        await self._free.acquire()
        connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        connected = False
        try:
            await self.ensure_connection(connection)
            connected = True
        finally:
            if not connected:
                await self.release(connection)
        return connection

    async def release(self, connection: Any) -> None:
        try:
            await super().release(connection)
        finally:
            self._free.release()


class _SentinelPool(_Pool, SentinelConnectionPool):
    """Connections to the primary that the sentinels name now; idle ones to an earlier primary are dropped."""

    async def get_master_address(self) -> Any:
        address = await self.sentinel_manager.discover_master(self.service_name)
        if self.master_address != address:
            self.master_address = address
            idle, self._available_connections = self._available_connections, []  # before others can take one
            for connection in idle:
                await connection.disconnect()
        return address


class _Sentinels(Sentinel):
    """Asked only when a connection is made, over connections that nobody else uses and that are not kept."""

    async def discover_master(self, service_name: str) -> Any:
        places = [sentinel.connection_pool.connection_kwargs for sentinel in self.sentinels]
        asked = [(place["host"], place["port"]) for place in places]
        asking = Sentinel(asked, sentinel_kwargs=self.sentinel_kwargs)  # type: ignore[no-untyped-call]
        try:
            return await asking.discover_master(service_name)
        finally:
            for sentinel in asking.sentinels:
                await sentinel.aclose()


async def _without_delay(connection: Connection) -> None:
    """Commands leave at once: uvloop would hold small writes back until every task that is ready has had its turn."""
    assert connection._writer is not None
    connection._writer.transport.set_write_buffer_limits(high=0)
    # redis-py 5 would begin with a health check, and connect again inside of it where the server has gone meanwhile
    connection.next_health_check = asyncio.get_running_loop().time() + connection.health_check_interval
    await connection.on_connect()


def _probing() -> dict[int, int]:
    """Socket options by which the kernel notices a server that was cut off without a word."""
    idle = TCP_KEEPALIVE_OF_MACOS if sys.platform == "darwin" else socket.TCP_KEEPIDLE
    return {idle: SILENT_S, socket.TCP_KEEPINTVL: PROBE_S, socket.TCP_KEEPCNT: PROBES}

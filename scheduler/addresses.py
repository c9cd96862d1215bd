"""Where Redis is, as a URL says it: one server, the primary that sentinels name, or a cluster.

redis:// rediss:// unix://                              one server, as redis-py reads them
redis+sentinel://user:password@host:26379,…/service/db  ?sentinel_username=…&sentinel_password=…
redis+cluster://user:password@host:6379,…               some of its nodes; it names the others
rediss+sentinel:// rediss+cluster://                    the same over TLS
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import SplitResult, urlsplit

from redis.asyncio.connection import parse_url

SENTINEL_PORT = 26379
REDIS_PORT = 6379
CHECKED = {"ssl_check_hostname": True}
"""Over TLS a server must be the one that the URL names, unless the URL says otherwise; redis-py would not ask."""

EXAMPLE = "redis+sentinel://host1:26379,host2:26379,host3:26379/farm"


class Kind(StrEnum):
    """What answers at an address."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis URL taken apart; `options` are redis-py's for a connection that serves data, without host and port (of a
    single server only what its URL need not say).

    `nodes` are the sentinels, or some nodes of the cluster; empty for a single server. `service` is the sentinels' name
    for their primary, `sentinel_options` what they ask for themselves.
    """

    kind: Kind
    url: str
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sentinel_options: dict[str, Any] = field(default_factory=dict)


def read_address(url: str) -> Address:
    """Take a Redis URL apart. Raises ValueError with what is wrong."""
    parts = urlsplit(url)
    base, plus, kind = parts.scheme.partition("+")
    if not plus:
        parse_url(url)
        return Address(Kind.SERVER, url, options=dict(CHECKED) if base == "rediss" else {})
    if base not in ("redis", "rediss") or kind not in _READERS:
        raise ValueError(f"{parts.scheme}:// is no Redis URL; there are redis, rediss, unix, and +sentinel or +cluster")
    return _READERS[kind](url, parts, base)


def _sentinels(url: str, parts: SplitResult, base: str) -> Address:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError(f"the URL of sentinels ends with the name of their primary, as in {EXAMPLE}")
    options = _options(parts, base, database)
    asked = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    own = {name: value for name, value in asked.items() if value is not None}
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    return Address(Kind.SENTINEL, url, _nodes(parts, SENTINEL_PORT), service, options, own | tls)


def _cluster(url: str, parts: SplitResult, base: str) -> Address:
    if parts.path.strip("/") not in ("", "0"):
        raise ValueError("a Redis Cluster has no databases but 0: leave the path of its URL empty")
    options = _options(parts, base, "")
    if any(name.startswith("sentinel_") for name in options):
        raise ValueError("a Redis Cluster has no sentinels: leave their user and password out of its URL")
    return Address(Kind.CLUSTER, url, _nodes(parts, REDIS_PORT), options=options)


def _nodes(parts: SplitResult, port: int) -> tuple[tuple[str, int], ...]:
    _, _, hosts = parts.netloc.rpartition("@")
    return tuple(_node(host, port) for host in hosts.split(","))


def _node(host: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("a host is missing in the list of hosts")
    return parts.hostname, parts.port or port


def _options(parts: SplitResult, base: str, database: str) -> dict[str, Any]:
    """What redis-py reads from the same URL with one host."""
    if database and not database.isdigit():
        raise ValueError(f"{database!r} is no number of a database")
    user, at, _ = parts.netloc.rpartition("@")
    options: dict[str, Any] = dict(parse_url(f"{base}://{user}{at}host/{database}?{parts.query}"))
    for name in ("host", "connection_class"):
        options.pop(name, None)
    return {"ssl": True, **CHECKED} | options if base == "rediss" else options


_READERS = {Kind.SENTINEL.value: _sentinels, Kind.CLUSTER.value: _cluster}

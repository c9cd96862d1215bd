"""Which servers the farm runs on: what the scripts call is in Redis 6.2, and older ones are refused at start."""

from __future__ import annotations

import re

import pytest

from scheduler.errors import UnsupportedServer
from scheduler.scripts import QueuePolicy, limit_texts, script_texts
from scheduler.servers import OLDEST, require_server, require_supported, risks
from tests.conftest import RedisServer

SINCE = {
    **dict.fromkeys(
        ("DEL", "EXISTS", "GET", "INCR", "PUBLISH", "SCARD", "SADD", "SMEMBERS", "SET", "SREM", "SISMEMBER"), (1, 0)
    ),
    **dict.fromkeys(("SRANDMEMBER", "ZCARD", "ZRANGEBYSCORE", "ZRANGE", "ZREM", "ZSCORE"), (1, 0)),
    **dict.fromkeys(("ZADD", "ZINCRBY", "ZREMRANGEBYSCORE", "ZREVRANGE"), (1, 2)),
    **dict.fromkeys(
        ("ZREMRANGEBYRANK", "HDEL", "HEXISTS", "HGET", "HINCRBY", "HMGET", "HSET", "HSETNX", "ZRANK"), (2, 0)
    ),
    "PERSIST": (2, 2),
    **dict.fromkeys(("HINCRBYFLOAT", "PEXPIRE", "PEXPIREAT", "PTTL", "TIME"), (2, 6)),
    "UNLINK": (4, 0),
    **dict.fromkeys(("XACK", "XADD", "XDEL", "XGROUP", "XLEN", "XRANGE", "XREADGROUP", "XREVRANGE", "ZPOPMIN"), (5, 0)),
    "XINFO": (5, 0),
    "ZMSCORE": (6, 2),
}
"""Commands of the scripts, and the version of Redis that has each (https://redis.io/docs/latest/commands/)."""

NEWER_OPTIONS = re.compile(r"'PEXPIRE',[^)]*'(NX|XX|GT|LT)'|'SET',[^)]*'GET'|'XADD',[^)]*'NOMKSTREAM'|<id>-\*")
"""Of Redis 7.0 and later, or used differently before."""


def test_scripts_call_nothing_newer_than_the_oldest_server() -> None:
    for text in {**script_texts(QueuePolicy(), 1), **limit_texts()}.values():
        called = set(re.findall(r"redis\.p?call\('([A-Z]+)'", text))
        assert called <= set(SINCE)
        assert all(SINCE[command] <= OLDEST for command in called)
        assert re.findall(r"redis\.(?!call|pcall)\w+", text) == []
        assert not NEWER_OPTIONS.search(text)


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ({"redis_version": "6.0.16"}, r"version is 6\.0\.16; the farm needs Redis 6\.2"),
        ({"redis_version": "7.0.15", "cluster_enabled": 1}, r"redis\+cluster"),
    ],
)
def test_what_cannot_hold_the_queue_is_refused(info: dict[str, object], why: str) -> None:
    with pytest.raises(UnsupportedServer, match=why):
        require_supported(info, clustered=False)


@pytest.mark.parametrize(
    "info",
    [{"redis_version": "6.2.14"}, {"redis_version": "7.2.4", "valkey_version": "9.1.2"}, {"redis_version": "8.0"}],
)
def test_what_can_hold_it_is_not(info: dict[str, object]) -> None:
    require_supported(info, clustered=False)


async def test_a_running_server_is_looked_at_and_one_that_is_away_is_not_waited_for(redis_server: RedisServer) -> None:
    await require_server(redis_server.url)
    await require_server("redis://127.0.0.1:1")


def test_what_may_lose_jobs_is_named() -> None:
    assert risks({"maxmemory_policy": "noeviction", "aof_enabled": 1}) == []
    assert len(risks({"maxmemory_policy": "allkeys-lru", "aof_enabled": 0})) == 2

"""Farms on a real server, and the one way to wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.connections import command_client
from scheduler.database import open_database
from tests.conftest import RedisServer
from tests.scheduler.builders import Farm
from tests.waiting import until_async

Eventually = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@pytest.fixture
def farm(redis: Redis) -> Farm:
    """A farm with the default policy on an empty server."""
    return Farm(redis)


@pytest.fixture
def eventually() -> Eventually:
    """Ask until the answer is true, and return it."""
    return until_async


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A migrated, empty database."""
    engine = open_database(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def own_redis(own_redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of a server that the test may hurt; it forgets nothing by kill -9, as `everysec` on a busy disk does."""
    client = command_client(own_redis_server.url)
    await client.config_set("appendfsync", "always")
    yield client
    await client.aclose()

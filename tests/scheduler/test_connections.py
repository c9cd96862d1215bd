"""Connections to Redis, as processes use them: under uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from scheduler.connections import MOST_CONNECTIONS, blocking_client, command_client
from tests.conftest import RedisServer


@pytest.mark.parametrize("make_client", [command_client, blocking_client])
def test_one_that_the_server_has_closed_meanwhile_is_lost_and_no_bug(
    redis_server: RedisServer, make_client: Callable[[str], Redis]
) -> None:
    async def write_to_a_closed_one() -> None:
        client = make_client(redis_server.url)
        connection = await client.connection_pool.get_connection()
        connection._writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await connection.send_command("PING")
        await client.connection_pool.release(connection)
        assert await client.ping()
        await client.aclose()

    uvloop.run(write_to_a_closed_one())


def test_who_comes_when_all_are_in_use_waits_for_one(redis_server: RedisServer) -> None:
    async def crowd() -> int:
        client = command_client(redis_server.url)
        answers = await asyncio.gather(*(client.incr("crowd") for _ in range(10 * MOST_CONNECTIONS)))
        assert len(set(answers)) == 10 * MOST_CONNECTIONS
        connected = len(await client.client_list())
        await client.aclose()
        return connected

    before = uvloop.run(_connections(redis_server))
    assert uvloop.run(crowd()) <= before + MOST_CONNECTIONS


async def _connections(server: RedisServer) -> int:
    client = command_client(server.url)
    count = len(await client.client_list())
    await client.aclose()
    return count

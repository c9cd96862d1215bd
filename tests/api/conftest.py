"""A whole farm in one event loop: real Valkey and SQL, API nodes on real ports, and a worker that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from redis.asyncio import Redis

from scheduler.database import open_database
from scheduler.projector import Projector
from scheduler.queue import JobQueue
from scheduler.scripts import QueuePolicy
from scheduler.settings import ApiSettings
from tests.api.scripted_farm import NodeServer, ScriptedWorker
from tests.scheduler.builders import PATIENT_LEASE_MS
from tests.waiting import PATIENCE_S

StartNode = Callable[..., Awaitable[NodeServer]]


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    """The queue on the test's Redis."""
    return JobQueue(redis, policy=QueuePolicy(lease_ms=PATIENT_LEASE_MS))


@pytest.fixture
async def worker(redis: Redis, queue: JobQueue) -> AsyncIterator[ScriptedWorker]:
    """A worker that plays `worker.script`."""
    scripted = ScriptedWorker(redis, queue)
    await scripted.announce()
    task = asyncio.create_task(scripted.run())
    yield scripted
    scripted.retire()
    await task


@pytest.fixture
async def start_node(redis_server: Any, redis: Redis, database_url: str, tmp_path: Path) -> AsyncIterator[StartNode]:
    """Start API nodes of one farm; keyword arguments change their settings."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> NodeServer:
            defaults = {"home": tmp_path, "redis_url": redis_server.url, "database_url": database_url}
            server = NodeServer(ApiSettings(**{**defaults, **changes}))
            task = asyncio.create_task(server.serve())
            stack.push_async_callback(_stop, server, task)
            async with asyncio.timeout(PATIENCE_S):
                while not server.started:
                    assert not task.done(), task.result()
                    await asyncio.sleep(0.005)
            await server.node.rules.refresh()
            return server

        yield start


async def _stop(server: NodeServer, task: asyncio.Task[None]) -> None:
    server.drain.end_answers()
    server.should_exit = True
    await task


@pytest.fixture
async def server(start_node: StartNode) -> NodeServer:
    """One API node."""
    return await start_node()


@pytest.fixture
async def client(server: NodeServer) -> AsyncIterator[httpx2.AsyncClient]:
    """Plain HTTP to the node."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        yield http


@pytest.fixture
async def sdk(server: NodeServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The openai SDK, without retries."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def project(redis: Redis, queue: JobQueue, database_url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Bring the record up to date."""
    engine = open_database(database_url)
    projector = Projector(redis, engine, queue, 0)

    async def step_to_the_end() -> None:
        while await projector.step():
            pass

    yield step_to_the_end
    await engine.dispose()

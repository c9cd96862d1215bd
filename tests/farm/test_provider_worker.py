"""A provider worker as a process of its own, killed at the worst moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scheduler.admin_log import COMMAND_LINE
from scheduler.connections import command_client
from scheduler.database import open_database
from scheduler.provider_store import ProviderStore
from scheduler.providers import read_provider
from scheduler.queue import JobQueue
from scheduler.settings import FarmSettings
from scheduler.vault import Vault
from scheduler.workers import WorkerBoard
from tests.farm.conftest import Farm, Role
from tests.waiting import until_async
from tests.workers.providers.stand_in import Reply, StandIn, openai_answer

MODEL = "kill-test/big"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}


@pytest.fixture
async def cloud(farm: Farm) -> AsyncIterator[StandIn]:
    async with StandIn().running() as cloud:
        engine = open_database(farm.database_url)
        store = ProviderStore(engine, Vault(FarmSettings(home=Path(farm.environment["FARM_HOME"]))))
        said = {"name": "kill-test", "kind": "openai", "base_url": cloud.url, "models": [{"name": "big"}]}
        await store.create(read_provider(said), "sk-1", COMMAND_LINE)
        yield cloud
        await store.enable("kill-test", COMMAND_LINE, enabled=False)
        await engine.dispose()


async def _start(farm: Farm, cloud: StandIn) -> Role:
    role = await asyncio.to_thread(farm.start, "workers.providers", FARM_PROVIDER_HOSTS=cloud.address)

    async def served() -> bool:
        return MODEL in [model["id"] for model in (await asyncio.to_thread(farm.get, "/v1/models"))["data"]]

    await until_async(served)
    return role


async def _declare_dead(farm: Farm) -> None:
    """As the reaper does when the lease of a killed worker has ended."""
    redis = command_client(farm.redis.url)
    for row in await WorkerBoard(redis).list():
        if row["model"] == MODEL:
            await JobQueue(redis).reap(0, worker=row["worker"])
            await WorkerBoard(redis).withdraw(row["worker"])
    await redis.aclose()


async def _read(farm: Farm, said: list[str]) -> None:
    async with (
        httpx2.AsyncClient(timeout=300) as http,
        http.stream("POST", f"{farm.url}/v1/chat/completions", json=ASKED) as answer,
    ):
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            said.append(line)


async def _killed(
    farm: Farm, cloud: StandIn, worker: Role, said: list[Any], *, behind: str = ""
) -> tuple[asyncio.Task[None], Role]:
    """Ask, kill the worker while the provider is silent and once `behind` was said, and start another one."""
    cloud.holding.clear()
    reading = asyncio.create_task(_read(farm, said))
    await cloud.holding.wait()
    await until_async(lambda: behind in "".join(said))
    await asyncio.to_thread(worker.kill)
    await _declare_dead(farm)
    cloud.replies = [Reply(openai_answer("Hello", " again"))]
    return reading, await _start(farm, cloud)


async def test_what_a_killed_worker_had_is_asked_again_unless_something_was_said(farm: Farm, cloud: StandIn) -> None:
    cloud.replies = [Reply(openai_answer("Hello"), hold_before=0)]
    worker = await _start(farm, cloud)
    before: list[str] = []
    reading, worker = await _killed(farm, cloud, worker, before)
    await reading
    assert ("".join(before).count('"content":"Hello'), len(cloud.requests)) == (1, 2)
    assert before[-2:] == ["data: [DONE]", ""]

    cloud.replies = [Reply(openai_answer("Hello", "never"), hold_before=1)]
    after: list[str] = []
    reading, worker = await _killed(farm, cloud, worker, after, behind="Hello")
    await reading
    assert "".join(after).count('"content":"Hello"') == 1
    assert '"code":"provider_interrupted"' in after[-2]
    assert len(cloud.requests) == 3
    assert await asyncio.to_thread(worker.stop) == 0
    assert MODEL not in [model["id"] for model in farm.get("/v1/models")["data"]]

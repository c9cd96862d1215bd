"""Many clients whose API node dies under them, and who all come back in one moment: each reads its whole answer."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from redis.asyncio import Redis

from scheduler.connections import MOST_CONNECTIONS
from scheduler.jobs import JobState
from scheduler.queue import JobQueue
from scheduler.scripts import QueuePolicy
from tests.api.scripted_farm import Event, Script, ScriptedWorker, chat_body, read_events
from tests.conftest import RedisServer
from tests.farm.conftest import Role, start_role
from tests.farm.streams import BUSY
from tests.scheduler.builders import PATIENT_LEASE_MS
from tests.waiting import PATIENCE_S, until_async

CLIENTS = 500
PIECES = [f"piece {number} " for number in range(6)]
SEEN = 3
"""Pieces that each client has read when its node dies."""

OWN_FILES = 96
"""Of a node, beside its clients' connections: libraries, Redis (see MOST_CONNECTIONS), SQL."""


class Node:
    """An API process that comes back at the same address."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._role: Role | None = None
        self.url = ""

    async def start(self) -> None:
        """Start, and wait until it is ready."""
        role = self._role = await asyncio.to_thread(start_role, "api", self._environment)
        self.url = str(role.facts["url"])
        self._environment["FARM_PORT"] = self.url.rpartition(":")[2].strip("/")

    def kill(self) -> None:
        """kill -9."""
        assert self._role is not None
        self._role.kill()

    @property
    def files(self) -> int:
        """That it has open."""
        assert self._role is not None
        return int(psutil.Process(self._role.process.pid).num_fds())


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    """One that leaves a scripted worker, which does not say what it holds, its jobs."""
    return JobQueue(redis, policy=QueuePolicy(lease_ms=PATIENT_LEASE_MS, disowned_grace_ms=PATIENT_LEASE_MS))


@pytest.fixture
async def node(
    redis_server: RedisServer, database_url: str, tmp_path: Path, worker: ScriptedWorker
) -> AsyncIterator[Node]:
    """One node of a farm whose worker plays a script."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FARM_")}
    farm = {"FARM_HOME": str(tmp_path), "FARM_REDIS_URL": redis_server.url, "FARM_DATABASE_URL": database_url}
    node = Node(inherited | farm | {"FARM_PORT": "0", "FARM_SUPERVISED": "1", "FARM_LOG_LEVEL": "ERROR"})
    await node.start()
    yield node
    node.kill()


class Client:
    """One stream: what it has read, and the ids of its events."""

    def __init__(self, http: httpx2.AsyncClient, node: Node) -> None:
        self.ids: list[str] = []
        self.text = ""
        self.done = False
        self._http = http
        self._node = node
        self._job_id = ""

    async def ask(self) -> None:
        """Ask, and read until the node dies."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        with pytest.raises(httpx2.TransportError):
            await self._read("POST", "/v1/chat/completions", json=chat_body(stream=True), headers=headers)

    async def come_back(self) -> None:
        """Read the rest, from behind what was read last."""
        headers = {"Last-Event-ID": self.ids[-1]}
        await self._read("GET", f"/v1/jobs/{self._job_id}/events", headers=headers)
        assert self.done

    async def _read(self, method: str, path: str, **request: Any) -> None:
        """Ask, again where the node has no time yet, and read."""

        async def done() -> bool:
            async with self._http.stream(method, f"{self._node.url}{path}", **request) as response:
                if response.status_code == BUSY:
                    return False
                assert response.status_code == 200, await response.aread()
                self._job_id = response.headers["farm-job-id"]
                async for event in read_events(response.aiter_lines()):
                    self._take(event)
                return True

        await until_async(done)

    def _take(self, event: Event) -> None:
        if event.data == "[DONE]":
            self.done = True
            return
        chunk: dict[str, Any] = json.loads(event.data)
        assert "error" not in chunk, chunk
        if event.id:
            self.ids.append(event.id)
        self.text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


async def test_clients_that_come_back_all_at_once_read_on_where_they_were(
    node: Node, worker: ScriptedWorker, queue: JobQueue, redis: Redis
) -> None:
    """F37: no answer has a gap or a word twice, and neither the node's files nor its connections to Redis grow."""
    worker.script = Script(choices=[PIECES], hold_before=SEEN)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=2 * PATIENCE_S, limits=limits) as http:
        clients = [Client(http, node) for _ in range(CLIENTS)]
        asking = [asyncio.create_task(client.ask()) for client in clients]

        def all_have_read() -> bool:
            return any(task.done() for task in asking) or all(len(client.ids) == SEEN for client in clients)

        await until_async(all_have_read)
        assert not any(task.done() for task in asking)
        node.kill()
        await asyncio.gather(*asking)
        await node.start()
        others = len(await redis.client_list())
        coming = [asyncio.create_task(client.come_back()) for client in clients]
        await until_async(lambda: CLIENTS <= node.files <= CLIENTS + OWN_FILES)
        worker.resume.set()
        await asyncio.gather(*coming)
        assert len(await redis.client_list()) <= others + 2 * MOST_CONNECTIONS
        assert {client.text for client in clients} == {"".join(PIECES)}
        assert {len(client.ids) for client in clients} == {len(set(client.ids)) for client in clients} == {len(PIECES)}
        await until_async(lambda: node.files <= OWN_FILES)
    states = {(await queue.snapshot(job_id) or {})["state"] for job_id in worker.claimed}
    assert states == {JobState.FINISHED.value}
    assert len(worker.claimed) == len(set(worker.claimed)) == CLIENTS

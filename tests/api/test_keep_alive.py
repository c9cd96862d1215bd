"""How long a model is kept after a request: said in every protocol, and listed where the model stays anyway."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from scheduler.agents import AgentBoard
from tests.api.scripted_farm import MODEL, NodeServer, ScriptedWorker

MESSAGES = [{"role": "user", "content": "Hi"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi", "store": False},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
}


async def load_by_demand(redis: Redis, server: NodeServer) -> None:
    """From now on a node agent has the model."""
    row = {"model": MODEL, "state": "loaded", "pinned": False}
    await AgentBoard(redis).publish("agent-1", {"models": [row]}, ttl_s=600)
    await server.node.places.look()


@pytest.mark.parametrize("path", REQUESTS)
async def test_it_goes_with_the_job_to_the_worker(
    client: httpx2.AsyncClient, worker: ScriptedWorker, redis: Redis, server: NodeServer, path: str
) -> None:
    await load_by_demand(redis, server)
    for said, kept_s in (("10m", 600.0), (0, 0.0), (-3, -1.0)):
        answer = await client.post(path, json=REQUESTS[path] | {"model": MODEL, "keep_alive": said})
        assert answer.status_code == 200, answer.text
        assert "keep_alive" not in answer.headers.get("farm-ignored-params", "")
        assert worker.requests[-1].keep_alive_s == kept_s


@pytest.mark.parametrize("path", REQUESTS)
async def test_it_is_listed_where_the_model_has_a_worker_of_its_own(
    client: httpx2.AsyncClient, worker: ScriptedWorker, path: str
) -> None:
    answer = await client.post(path, json=REQUESTS[path] | {"model": MODEL, "keep_alive": 60})
    assert "keep_alive" in answer.headers["farm-ignored-params"].split(", ")


@pytest.mark.parametrize("path", REQUESTS)
async def test_what_is_no_time_is_refused_by_name(
    client: httpx2.AsyncClient, worker: ScriptedWorker, redis: Redis, server: NodeServer, path: str
) -> None:
    await load_by_demand(redis, server)
    for odd in ("soon", True, [1]):
        answer = await client.post(path, json=REQUESTS[path] | {"model": MODEL, "keep_alive": odd})
        assert answer.status_code == 400
        assert "keep_alive" in answer.text

"""Dead letters and scheduled jobs over HTTP."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from scheduler.events import EventType
from scheduler.jobs import JobState
from scheduler.queue import JobQueue, shard_key
from tests.api.scripted_farm import MODEL, ScriptedWorker, chat_body

CHAT = "/v1/chat/completions"
ASYNC = {"prefer": "respond-async"}


@pytest.fixture
async def dead(client: httpx2.AsyncClient, worker: ScriptedWorker, queue: JobQueue) -> list[str]:
    """Two jobs that died on a worker of their own; nobody else is there to claim."""
    worker.retire()
    await worker.gone.wait()
    ids = [(await client.post(CHAT, json=chat_body(), headers=ASYNC)).json()["id"] for _ in range(2)]
    await queue.heartbeat("grave", [], register=True)
    for job in await queue.claim("grave", MODEL, rows=9, nonce="n", idle=True):
        await queue.finish(job.id, job.token, EventType.DIED, {"error_code": "engine_error", "error": "not finite"})
    return ids


async def listed(client: httpx2.AsyncClient) -> list[str]:
    return [job["id"] for job in (await client.get("/v1/jobs/dead")).json()["data"]]


async def test_dead_jobs_are_listed_with_their_error(client: httpx2.AsyncClient, dead: list[str], project: Any) -> None:
    await project()
    answer = (await client.get("/v1/jobs/dead", params={"limit": 1})).json()
    [job] = answer["data"]
    assert (job["id"], job["state"], answer["has_more"]) == (dead[0], "dead", True)
    assert (job["error"]["code"], job["error"]["message"]) == ("engine_error", "not finite")


async def test_a_dead_job_is_retried_once_however_often_it_is_asked_for(
    client: httpx2.AsyncClient, dead: list[str]
) -> None:
    answers = [await client.post(f"/v1/jobs/{dead[0]}/retry") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {202}
    [new_id] = {answer.json()["id"] for answer in answers}
    assert new_id not in dead
    assert answers[0].headers["location"] == f"/v1/jobs/{new_id}"
    assert await listed(client) == dead[1:]


async def test_all_dead_jobs_are_retried_and_those_without_a_body_stay(
    client: httpx2.AsyncClient, dead: list[str], redis: Redis, project: Any
) -> None:
    await project()  # the record keeps no prompts of what has ended
    await redis.delete(shard_key(0, f"b:{dead[1]}"))
    answer = (await client.post("/v1/jobs/dead/retry")).json()
    assert [entry["id"] for entry in answer["retried"]] == dead[:1]
    assert [(entry["id"], entry["error"]["code"]) for entry in answer["failed"]] == [(dead[1], "body_not_kept")]
    assert await listed(client) == dead[1:]
    assert (await client.get(f"/v1/jobs/{answer['retried'][0]['new_id']}")).json()["state"] == "queued"


async def test_dead_jobs_are_discarded_one_or_all(client: httpx2.AsyncClient, dead: list[str]) -> None:
    assert (await client.post(f"/v1/jobs/{dead[0]}/discard")).json()["state"] == "dead"
    assert await listed(client) == dead[1:]
    assert (await client.post("/v1/jobs/dead/discard")).json() == {"discarded": dead[1:], "has_more": False}
    assert await listed(client) == []


async def test_a_job_that_is_not_dead_is_not_discarded(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    job_id = (await client.post(CHAT, json=chat_body())).headers["farm-job-id"]
    refused = await client.post(f"/v1/jobs/{job_id}/discard")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_dead")


async def test_a_job_can_be_scheduled_and_its_deadline_counts_from_then(
    client: httpx2.AsyncClient, worker: ScriptedWorker, queue: JobQueue
) -> None:
    begin = time.time() + 3600
    body = {"kind": "chat.completions", "body": chat_body(), "not_before": begin, "timeout_s": 60}
    job = (await client.post("/v1/jobs", json=body)).json()
    assert (job["state"], job["position"]) == ("delayed", None)
    assert abs(job["due_ms"] - begin * 1000) < 5000
    snapshot = await queue.snapshot(job["id"])
    assert snapshot is not None
    assert int(snapshot["ddl"]) - job["due_ms"] == pytest.approx(60_000, abs=2)
    cancelled = await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert cancelled.json()["state"] == JobState.CANCELLED


async def test_a_time_that_has_passed_is_now(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    body = {"kind": "chat.completions", "body": chat_body(), "not_before": 5}
    assert (await client.post("/v1/jobs", json=body)).json()["due_ms"] is None


@pytest.mark.parametrize(
    ("field", "value"), [("not_before", -1), ("not_before", 1e12), ("timeout_s", 0), ("timeout_s", 1e9)]
)
async def test_impossible_times_are_refused_by_name(
    client: httpx2.AsyncClient, worker: ScriptedWorker, field: str, value: float
) -> None:
    body = {"kind": "chat.completions", "body": chat_body(), field: value}
    refused = await client.post("/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)

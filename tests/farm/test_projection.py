"""After a thousand mixed requests SQL says exactly what the event log says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from scheduler.connections import command_client
from scheduler.events import decode_event
from scheduler.job_ids import new_job_id
from scheduler.jobs import Lane, replay
from scheduler.queue import JobQueue, NewJob, event_key
from scheduler.requests import JobRequest, Stopping
from tests.farm.streams import BUSY
from tests.waiting import PATIENCE_S

REQUESTS = 1000
MIXED_STATES = {"finished", "cancelled", "failed", "expired"}


@pytest.fixture(scope="module")
def busy(start_farm: Callable[..., Any]) -> Any:
    """A farm of its own: its log holds these requests and nothing else."""
    return start_farm()


async def one_request(client: httpx2.AsyncClient, index: int) -> None:
    """Every fifth is left early, every seventh is async, every eleventh has no time."""
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"What is {index % 9} + {index % 7}?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    headers = {}
    if index % 11 == 0:
        headers["Farm-Timeout"] = "0.001"
    if index % 7 == 0:
        headers["Prefer"] = "respond-async"
    if index % 5 == 0:
        await leave_early(client, body | {"max_tokens": 300, "ignore_eos": True})
        return
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    while answer.status_code == BUSY:
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code in (200, 202, 504), answer.text


async def leave_early(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    status = BUSY
    while status == BUSY:
        async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            status = response.status_code
            async for line in response.aiter_lines():
                if line.startswith("id:"):
                    break


async def send_failing_job(queue: JobQueue) -> None:
    """A job that fails for its own reason: a prompt with a token that the model does not have."""
    request = JobRequest(kind="completion", model="demo", prompts=((10**6,),), stopping=Stopping(max_tokens=4))
    await queue.submit(
        NewJob(
            id=new_job_id(1),
            request=request,
            pool="demo",
            tenant="default",
            lane=Lane.HIGH,
            route="",
            rule_version=0,
            model_asked="demo",
            request_id="failing",
        )
    )


async def send_all(url: str, redis_url: str) -> None:
    redis = command_client(redis_url)
    queue = JobQueue(redis)
    limit = asyncio.Semaphore(48)
    async with httpx2.AsyncClient(base_url=url, timeout=2 * PATIENCE_S) as client:

        async def limited(index: int) -> None:
            async with limit:
                await (send_failing_job(queue) if index % 13 == 0 else one_request(client, index))

        await asyncio.gather(*(limited(index) for index in range(REQUESTS)))
    await redis.aclose()


async def events_of(redis_url: str) -> list[Any]:
    redis: Redis = Redis.from_url(redis_url)
    entries = await redis.xrange(event_key(0))
    await redis.aclose()
    return [decode_event(entry_id, fields) for entry_id, fields in entries]


def table(farm: Any) -> dict[str, dict[str, Any]]:
    rows = farm.query("SELECT * FROM jobs")
    for row in rows:
        for name in ("params", "routing"):  # PostgreSQL gives what SQLite has as text
            row[name] = json.loads(row[name]) if isinstance(row[name], str) else row[name]
        row["durable"] = bool(row["durable"])
    return {row["id"]: row for row in rows}


def usage(farm: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = farm.query("SELECT * FROM usage_hourly ORDER BY hour_ms, tenant, model")
    return rows


def test_the_projection_equals_the_replay_and_the_rebuild(busy: Any, eventually: Callable[..., Any]) -> None:
    asyncio.run(send_all(busy.url, busy.redis.url))
    submitted = len(replay(asyncio.run(events_of(busy.redis.url))))
    assert submitted >= REQUESTS  # more where a node was busy and was asked again
    ended = "SELECT COUNT(*) AS n FROM jobs WHERE ended_ms IS NOT NULL"
    eventually(lambda: busy.query(ended)[0]["n"] == submitted)

    replayed = {job.id: asdict(job) for job in replay(asyncio.run(events_of(busy.redis.url))).values()}
    projected = table(busy)
    assert projected == replayed
    assert set(Counter(row["state"] for row in projected.values())) == MIXED_STATES

    before = usage(busy)
    command = [sys.executable, "-m", "farm", "audit", "rebuild"]
    done = subprocess.run(command, env=busy.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert table(busy) == projected
    assert usage(busy) == before
    assert sum(row["jobs"] for row in before) == submitted

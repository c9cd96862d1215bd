"""Streams that are disturbed: clients that leave or come back, waiting, draining, a queue that dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from scheduler.jobs import JobState
from scheduler.queue import JobQueue
from tests.api.conftest import StartNode
from tests.api.scripted_farm import (
    Event,
    NodeServer,
    Script,
    ScriptedWorker,
    all_events,
    chat_body,
    read_events,
    until,
)
from tests.waiting import PATIENCE_S

URL = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
RICH = Script(
    choices=[["<thi", "nk>\nhm", "</think>\n", "\nI say", ' \n<tool_call>{"name"', ': "f"}</tool', "_call>", "."]]
)


async def ended(queue: JobQueue, job_id: str, state: JobState) -> None:
    """Wait for a job's end."""

    async def reached() -> bool:
        snapshot = await queue.snapshot(job_id)
        return snapshot is not None and snapshot["state"] == state

    await until(reached)


@pytest.mark.parametrize("seen", [None, *range(8)])
async def test_a_reconnect_gets_exactly_the_rest_from_any_node(
    start_node: StartNode, worker: ScriptedWorker, seen: int | None
) -> None:
    worker.script = RICH
    first, second = await start_node(), await start_node()
    body = chat_body(stream=True, tools=[TOOL], logprobs=True, stream_options={"include_usage": True})
    async with (
        httpx2.AsyncClient(base_url=first.url, timeout=PATIENCE_S) as http,
        http.stream("POST", URL, json=body) as response,
    ):
        job_id = response.headers["farm-job-id"]
        whole = [event async for event in read_events(response.aiter_lines())]
    stored = [event for event in whole if event.id is not None]
    async with httpx2.AsyncClient(base_url=second.url, timeout=PATIENCE_S) as http:
        path = f"/v1/jobs/{job_id}/events"
        if seen is None:
            assert await all_events(http, "GET", path) == whole
            return
        expected = [*stored[seen + 1 :], whole[-1]]
        assert await all_events(http, "GET", path, headers={"last-event-id": stored[seen].id or ""}) == expected
        assert await all_events(http, "GET", f"{path}?starting_after={stored[seen].id}") == expected


async def test_a_job_can_be_followed_while_it_runs(
    client: httpx2.AsyncClient, start_node: StartNode, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=2)
    other = await start_node()
    async with client.stream("POST", URL, json=chat_body(stream=True)) as response:
        await worker.held.wait()
        job_id = response.headers["farm-job-id"]
        own = read_events(response.aiter_lines())
        first = [await anext(own) for _ in range(2)][1].id or ""
        async with (
            httpx2.AsyncClient(base_url=other.url, timeout=PATIENCE_S) as http,
            http.stream("GET", f"/v1/jobs/{job_id}/events", headers={"last-event-id": first}) as again,
        ):
            events = read_events(again.aiter_lines())
            assert (await anext(events)).sequence == 2
            worker.resume.set()
            assert [event.sequence async for event in events] == [3, 4, None]
        assert [event.id async for event in own][-1] is None


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_cancels(client: httpx2.AsyncClient, worker: ScriptedWorker, stream: bool) -> None:
    worker.script = Script(hold_before=1)
    request = asyncio.create_task(client.post(URL, json=chat_body(stream=stream)))
    await worker.held.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    queue, job = worker.queue, worker.claimed[0]

    async def told() -> bool:
        return (await queue.snapshot(job) or {}).get("cancel") == "cancelled"

    await until(told)
    worker.resume.set()
    await worker.stopped.wait()
    await ended(queue, job, JobState.CANCELLED)


@pytest.mark.parametrize("headers", [{"farm-disconnect": "continue"}, {"idempotency-key": "k1"}])
async def test_leaving_need_not_cancel(
    server: NodeServer, client: httpx2.AsyncClient, worker: ScriptedWorker, headers: dict[str, str]
) -> None:
    worker.script = Script(hold_before=1)
    async with client.stream("POST", URL, json=chat_body(stream=True), headers=headers):
        await worker.held.wait()
    await until(lambda: server.drain.open_answers == 0)
    worker.resume.set()
    await ended(worker.queue, worker.claimed[0], JobState.FINISHED)
    assert worker.cancelled == []


async def test_a_job_waits_some_seconds_for_its_client_to_come_back(
    server: NodeServer, client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=1)
    lingering = {"farm-disconnect": "continue=0.05"}
    ids = []
    for _ in range(2):
        async with client.stream("POST", URL, json=chat_body(stream=True), headers=lingering) as response:
            ids.append(response.headers["farm-job-id"])
            await worker.held.wait()
        await until(lambda: server.drain.open_answers == 0)

        async def left(job_id: str = ids[-1]) -> bool:
            return "left" in (await worker.queue.snapshot(job_id) or {})

        await until(left)
    await worker.queue.listen(ids[1], "another node")

    async def expired() -> bool:
        return await worker.queue.expire(0) > 0

    await until(expired)
    worker.resume.set()
    await ended(worker.queue, ids[0], JobState.CANCELLED)
    await ended(worker.queue, ids[1], JobState.FINISHED)


async def test_a_waiting_stream_says_its_place_and_stays_alive(
    start_node: StartNode, worker: ScriptedWorker, redis: Redis
) -> None:
    server = await start_node(keepalive_s=0.05)
    worker.script = Script(hold_before=1)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        async with http.stream("POST", URL, json=chat_body(stream=True)) as response:
            await worker.held.wait()
            lines = response.aiter_lines()
            assert await _first(lines, ": keep-alive") == ": keep-alive"
            worker.resume.set()
            async for _ in lines:
                pass
        worker.retire()
        await worker.gone.wait()
        async with http.stream("POST", URL, json=chat_body(stream=True)) as response:
            assert await _first(response.aiter_lines(), ": queued") == ": queued position=1"


async def _first(lines: Any, start: str) -> str:
    """The first line that starts so; comments must not be followed by an empty line after an id was sent."""
    async for line in lines:
        if line.startswith(start):
            return str(line)
    raise AssertionError(start)


async def test_a_drained_node_refuses_new_requests_and_ends_open_ones_properly(
    server: NodeServer, client: httpx2.AsyncClient, start_node: StartNode, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=2)
    async with client.stream("POST", URL, json=chat_body(stream=True)) as response:
        await worker.held.wait()
        events = read_events(response.aiter_lines())
        seen = [await anext(events) for _ in range(3)]
        assert [event.sequence for event in seen] == [None, 1, 2]
        unary = asyncio.create_task(client.post(URL, json=chat_body()))
        await until(lambda: len(worker.requests) == 2)
        server.drain.begin()
        refused = await client.post(URL, json=chat_body())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "engine_draining"
        for path in ("/health", "/readyz"):
            health = await client.get(path)
            assert (health.status_code, health.json()["status"]) == (503, "shutting_down")
        server.drain.end_answers()
        last = [event async for event in events]
        assert [json.loads(event.data)["error"]["code"] for event in last] == ["engine_draining"]
        told = await unary
        assert (told.status_code, told.json()["error"]["code"]) == (503, "engine_draining")
    other = await start_node()
    worker.resume.set()
    async with httpx2.AsyncClient(base_url=other.url, timeout=PATIENCE_S) as http:
        path = f"/v1/jobs/{response.headers['farm-job-id']}/events"
        rest = await all_events(http, "GET", path, headers={"last-event-id": seen[-1].id or ""})
        assert [event.sequence for event in rest] == [3, 4, None]
        await ended(worker.queue, told.headers["farm-job-id"], JobState.FINISHED)
    assert worker.cancelled == []


async def test_an_idempotent_request_is_answered_by_the_first_ones_job(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    headers = {"idempotency-key": "once"}
    first = await client.post(URL, json=chat_body(seed=1), headers=headers)
    again = await client.post(URL, json=dict(reversed(chat_body(seed=1).items())), headers=headers)
    assert first.json() == again.json()
    assert first.headers["farm-job-id"] == again.headers["farm-job-id"]
    assert len(worker.requests) == 1
    clash = await client.post(URL, json=chat_body(seed=2), headers=headers)
    assert (clash.status_code, clash.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_a_dead_queue_is_503_and_comes_back(
    start_redis: Callable[[], Any], start_node: StartNode, worker: ScriptedWorker
) -> None:
    own = start_redis()
    server = await start_node(redis_url=own.url)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        own.kill()
        response = await http.post(URL, json=chat_body())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable")
        assert int(response.headers["retry-after"]) >= 1
        for path, status in (("/health", 503), ("/readyz", 503), ("/livez", 200), ("/metrics", 200)):
            assert (await http.get(path)).status_code == status
        own.start()

        async def queue_is_there() -> bool:
            status: str = (await http.get("/readyz")).json()["status"]
            return status == "no_model" and (await http.post(URL, json=chat_body())).status_code == 404

        await until(queue_is_there)


async def test_a_queue_that_forgot_a_job_gets_it_again(
    client: httpx2.AsyncClient, redis: Redis, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=2)
    async with client.stream("POST", URL, json=chat_body(stream=True)) as response:
        events = read_events(response.aiter_lines())
        seen: list[Event] = [await anext(events) for _ in range(3)]
        await worker.held.wait()
        keys = [key for key in await redis.keys("{farm.0}:*") if not key.endswith(b":wl")]
        await redis.delete(*keys)
        worker.script = Script()
        seen += [event async for event in events]
    assert [event.sequence for event in seen] == [None, 1, 2, 3, 4, None]
    assert len(worker.requests) == 2


async def test_who_has_read_what_the_queue_lost_is_told_to_read_again(
    client: httpx2.AsyncClient, start_node: StartNode, worker: ScriptedWorker
) -> None:
    """F16: the frame of its Last-Event-ID was lost in a power cut; the log may be cut into other frames now."""
    job_id = (await client.post(URL, json=chat_body())).headers["farm-job-id"]
    other = await start_node()
    path = f"/v1/jobs/{job_id}/events"
    async with httpx2.AsyncClient(base_url=other.url, timeout=PATIENCE_S) as http:
        (told,) = await all_events(http, "GET", path, headers={"last-event-id": "17-2"})
        assert json.loads(told.data)["error"]["code"] == "log_rewritten"
        whole = await all_events(http, "GET", path)
        assert [event.sequence for event in whole] == [None, 1, 2, 3, 4, 5, None]

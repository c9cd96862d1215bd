"""The farm's own job endpoints, asynchronous requests, and the audit log."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from scheduler.jobs import JobState
from scheduler.relay import Relay
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker, all_events, chat_body, until
from tests.waiting import PATIENCE_S

CHAT = "/v1/chat/completions"
Project = Callable[[], Awaitable[None]]


async def state_of(client: httpx2.AsyncClient, job_id: str) -> str:
    """A job's state."""
    return str((await client.get(f"/v1/jobs/{job_id}")).json()["state"])


async def reached(client: httpx2.AsyncClient, job_id: str, state: JobState) -> dict[str, Any]:
    """Wait for a state; the job then."""

    async def there() -> bool:
        return await state_of(client, job_id) == state

    await until(there)
    job: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).json()
    return job


@pytest.mark.parametrize("native", [True, False])
async def test_an_async_request_is_accepted_run_and_kept(
    client: httpx2.AsyncClient, redis: Redis, worker: ScriptedWorker, project: Project, native: bool
) -> None:
    worker.script = Script(hold_before=1)
    if native:
        response = await client.post("/v1/jobs", json={"kind": "chat.completions", "body": chat_body()})
    else:
        response = await client.post(CHAT, json=chat_body(), headers={"prefer": "wait=5, respond-async"})
        assert response.headers["preference-applied"] == "respond-async"
    assert response.status_code == 202
    job_id = response.json()["id"]
    assert response.headers["location"] == f"/v1/jobs/{job_id}"
    assert response.headers["farm-job-id"] == job_id
    await worker.held.wait()
    running = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert (running["state"], running["kind"], running["model"]) == ("running", "chat.completions", MODEL)
    assert (running["output_tokens"], running["result"], running["durable"]) == (5, None, True)
    worker.resume.set()
    finished = await reached(client, job_id, JobState.FINISHED)
    assert finished["result"]["choices"][0]["message"]["content"] == "Hello, world!"
    assert finished["result"]["id"] == f"chatcmpl-{job_id}"
    await project()
    await redis.flushall()
    kept = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert kept["state"] == "finished"
    assert kept["result"] == finished["result"]
    assert kept["finish_reason"] == "stop"
    events = await all_events(client, "GET", f"/v1/jobs/{job_id}/events")
    assert [event.sequence for event in events] == [None, 1, 2, 3, 4, 5, None]


async def test_a_waiting_job_has_a_place_and_can_be_cancelled(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    worker.retire()
    await worker.gone.wait()
    jobs = [(await client.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"})).json() for _ in range(2)]
    assert [job["position"] for job in jobs] == [1, 2]
    assert [job["state"] for job in jobs] == ["queued", "queued"]
    cancelled = await client.post(f"/v1/jobs/{jobs[0]['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["error"]["code"] == "cancelled"
    assert (await client.post(f"/v1/jobs/{jobs[0]['id']}/cancel")).json()["state"] == "cancelled"
    assert (await client.get(f"/v1/jobs/{jobs[1]['id']}")).json()["position"] == 1
    [*_, error] = await all_events(client, "GET", f"/v1/jobs/{jobs[0]['id']}/events")
    assert json.loads(error.data)["error"]["code"] == "cancelled"


async def test_a_running_job_can_be_cancelled(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(hold_before=1)
    job = (await client.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"})).json()
    await worker.held.wait()
    told = (await client.post(f"/v1/jobs/{job['id']}/cancel")).json()
    assert (told["state"], told["cancel_requested"]) == ("running", True)
    worker.resume.set()
    await reached(client, job["id"], JobState.CANCELLED)


async def test_an_ended_job_can_be_retried_while_its_body_is_kept(
    client: httpx2.AsyncClient, redis: Redis, worker: ScriptedWorker, project: Project
) -> None:
    worker.script = Script(hold_before=0, fail={"error_code": "engine_error", "error": "boom"})
    job = (await client.post(CHAT, json=chat_body(seed=5), headers={"prefer": "respond-async"})).json()
    await worker.held.wait()
    early = await client.post(f"/v1/jobs/{job['id']}/retry")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "job_not_ended")
    worker.resume.set()
    failed = await reached(client, job["id"], JobState.FAILED)
    assert failed["error"]["message"] == "boom"
    worker.script = Script()
    again = await client.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 202
    new_id = again.json()["id"]
    assert again.headers["location"] == f"/v1/jobs/{new_id}"
    assert new_id != job["id"]
    await reached(client, new_id, JobState.FINISHED)
    assert worker.requests[0].sampling == worker.requests[1].sampling
    await project()
    await redis.flushall()
    late = await client.post(f"/v1/jobs/{new_id}/retry")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "body_not_kept")


async def test_acceptance_needs_sql_and_not_the_queue(
    start_redis: Callable[[], Any], start_node: StartNode, worker: ScriptedWorker, redis: Redis, server: NodeServer
) -> None:
    own = start_redis()
    node = await start_node(redis_url=own.url)
    await worker.announce()
    async with httpx2.AsyncClient(base_url=node.url, timeout=PATIENCE_S) as http:
        node.node.catalog = server.node.catalog
        node.node.formats = server.node.formats
        own.kill()
        response = await http.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"})
        assert response.status_code == 202
        job = response.json()
        assert (job["state"], job["position"]) == ("queued", None)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        early = await http.post(f"/v1/jobs/{job['id']}/cancel")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "not_queued_yet")
        assert await Relay(redis, worker.queue, server.node.store).relay(0) == 1
        await reached(http, job["id"], JobState.FINISHED)


async def test_without_sql_async_is_503_and_sync_goes_on(start_node: StartNode, worker: ScriptedWorker) -> None:
    server = await start_node(database_url="postgresql+asyncpg://nobody@127.0.0.1:1/none")
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        refused = await http.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "record_unavailable")
        assert "retry-after" in refused.headers
        assert (await http.post(CHAT, json=chat_body())).status_code == 200
        health = await http.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert (await http.get("/v1/jobs")).status_code == 503


async def test_async_idempotency_keys_name_one_job(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    headers = {"prefer": "respond-async", "idempotency-key": '"k"'}
    first = await client.post(CHAT, json=chat_body(), headers=headers)
    again = await client.post(CHAT, json=chat_body(), headers=headers)
    assert first.json()["id"] == again.json()["id"]
    clash = await client.post(CHAT, json=chat_body(n=2), headers=headers)
    assert (clash.status_code, clash.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert "'k'" in clash.json()["error"]["message"]
    sync = await client.post(CHAT, json=chat_body(), headers={"idempotency-key": "k"})
    assert sync.headers["farm-job-id"] != first.json()["id"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kind": "poem", "body": {}}, "kind"),
        ({"kind": "chat.completions"}, "body"),
        ({"kind": "chat.completions", "body": {"model": "m"}}, "body.messages"),
        ({"kind": "completions", "body": {"model": "m", "prompt": 5}}, "body.prompt"),
        ({"kind": "completions", "body": {}, "more": 1}, "more"),
    ],
)
async def test_bad_jobs_are_refused_by_path(
    client: httpx2.AsyncClient, worker: ScriptedWorker, body: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/jobs", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("job_id", ["0-01ARZ3NDEKTSV4RRFFQ69G5FAV", "nonsense", "0-../../x"])
async def test_unknown_jobs_are_404(client: httpx2.AsyncClient, job_id: str) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")):
        response = await client.request(method, f"/v1/jobs/{job_id}{path}")
        assert response.status_code == 404, response.text
    response = await client.get("/v1/jobs/0-01ARZ3NDEKTSV4RRFFQ69G5FAV/events", headers={"last-event-id": "x"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "Last-Event-ID")


async def test_listings_are_filtered_and_paged(
    client: httpx2.AsyncClient, worker: ScriptedWorker, project: Project
) -> None:
    ids = []
    for lane in ("high", "low", "low"):
        response = await client.post(CHAT, json=chat_body(), headers={"farm-lane": lane})
        ids.append(response.headers["farm-job-id"])
    await project()
    for path in ("/v1/jobs", "/v1/audit/requests"):
        page = (await client.get(path, params={"limit": 2})).json()
        assert [job["id"] for job in page["data"]] == [ids[2], ids[1]]
        rest = (await client.get(path, params={"after": page["next"]})).json()
        assert [job["id"] for job in rest["data"]] == [ids[0]]
        assert (rest["has_more"], rest["next"]) == (False, None)
        for params, count in (
            ({"lane": "low"}, 2),
            ({"state": "finished"}, 3),
            ({"status": "failed"}, 0),
            ({"model": MODEL}, 3),
            ({"model": "other"}, 0),
            ({"since": "1h"}, 3),
            ({"until": "1h"}, 0),
            ({"since": "2020-01-01T00:00:00Z", "until": "2021-01-01"}, 0),
            ({"since": "1600000000"}, 3),
            ({"tenant": "default"}, 3),
        ):
            assert len((await client.get(path, params=params)).json()["data"]) == count, params
        for name, value in (("since", "soon"), ("after", "x"), ("limit", "0"), ("state", "odd"), ("tenant", "other")):
            response = await client.get(path, params={name: value})
            assert (response.status_code, response.json()["error"]["param"]) == (400, name)


async def test_the_audit_log_comes_as_lines_and_as_csv(
    client: httpx2.AsyncClient, worker: ScriptedWorker, project: Project
) -> None:
    for _ in range(2):
        await client.post(CHAT, json=chat_body(n=2))
    await project()
    lines = await client.get("/v1/audit/requests", params={"format": "jsonl", "limit": 1})
    [row] = [json.loads(line) for line in lines.text.splitlines()]
    assert (row["state"], row["params"]["n"], row["model"]) == ("finished", 2, MODEL)
    sheet = await client.get("/v1/audit/requests", params={"format": "csv", "after": lines.headers["farm-next"]})
    assert sheet.headers["content-type"].startswith("text/csv")
    [record] = csv.DictReader(io.StringIO(sheet.text))
    assert (record["kind"], json.loads(record["params"])["n"]) == ("chat.completions", 2)
    assert "farm-next" not in sheet.headers

"""What operators see: models, workers, health, metrics, documentation; and that routing rules are followed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx2

from scheduler.models import ModelCatalog
from scheduler.queue import JobQueue
from scheduler.workers import FIGURES
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, TOKENIZER_JSON, NodeServer, ScriptedWorker, chat_body, make_card
from tests.scheduler.ruling import put_in_effect, rule
from tests.waiting import PATIENCE_S

CHAT = "/v1/chat/completions"


async def test_models_are_listed_also_with_slashes(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    [model] = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (MODEL, "model", 400)
    assert (await client.get(f"/v1/models/{MODEL}")).json() == model
    missing = await client.get("/v1/models/tiny/modell")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_adapter_is_a_model_of_its_own_in_its_models_queue(
    client: httpx2.AsyncClient, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> None:
    await worker.announce(make_card(adapters=("poems", "tiny/sql")))
    models = (await client.get("/v1/models")).json()["data"]
    described = [(model["id"], model["root"], model["parent"], model["max_model_len"]) for model in models]
    assert described == [(MODEL, MODEL, None, 400), ("poems", MODEL, MODEL, 400), ("tiny/sql", MODEL, MODEL, 400)]
    assert (await client.get("/v1/models/tiny/sql")).json() == models[2]
    [status] = (await client.get("/admin/models/status")).json()["data"]
    assert status["adapters"] == ["poems", "tiny/sql"]

    response = await client.post(CHAT, json=chat_body(model="poems"))
    assert (response.status_code, response.json()["model"]) == (200, "poems")
    assert (worker.requests[0].model, worker.requests[0].adapter) == (MODEL, "poems")
    await project()
    job = (await client.get(f"/v1/jobs/{response.headers['farm-job-id']}")).json()
    assert (job["model_asked"], job["model"], job["params"]["adapter"]) == ("poems", MODEL, "poems")
    await client.post(CHAT, json=chat_body())
    assert worker.requests[1].adapter is None


async def test_an_adapters_job_is_retried_with_it(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await worker.announce(make_card(adapters=("poems",)))
    accepted = await client.post(CHAT, json=chat_body(model="poems"), headers={"prefer": "respond-async"})
    job_id = accepted.headers["farm-job-id"]
    async with client.stream("GET", f"/v1/jobs/{job_id}/events") as events:
        await events.aread()
    again = await client.post(f"/v1/jobs/{job_id}/retry")
    assert again.status_code == 202, again.text
    async with client.stream("GET", f"/v1/jobs/{again.headers['farm-job-id']}/events") as events:
        await events.aread()
    assert [request.adapter for request in worker.requests] == ["poems", "poems"]


async def test_models_and_workers_have_a_status(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    [status] = (await client.get("/admin/models/status")).json()["data"]
    assert (status["name"], status["workers"], status["running"]) == (MODEL, [worker.name], 1)
    assert status["waiting"]["normal"] == 0
    [figures] = (await client.get("/admin/workers")).json()["data"]
    assert (figures["worker"], figures["model"], figures["kv_bytes"]) == (worker.name, MODEL, 7)


async def test_a_worker_that_has_said_nothing_yet_has_a_row_with_every_key(
    client: httpx2.AsyncClient, worker: ScriptedWorker, queue: JobQueue
) -> None:
    await queue.heartbeat("a-new-one", [], register=True)
    silent, known = (await client.get("/admin/workers")).json()["data"]
    assert silent == dict.fromkeys(FIGURES) | {"worker": "a-new-one"}
    assert known.keys() == silent.keys()
    assert (await client.get("/health")).json()["status"] == "ok"
    assert (await client.get("/admin/models/status")).json()["data"][0]["workers"] == [worker.name]
    assert "a-new-one" not in (await client.get("/metrics")).text


async def test_health_tells_what_is_missing(
    server: NodeServer, client: httpx2.AsyncClient, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> None:
    assert (await client.get("/health")).json() == {"status": "ok", "problems": [], "open_answers": 0}
    assert (await client.get("/readyz")).json() == {"status": "ok"}
    worker.retire()
    await worker.gone.wait()
    await worker.queue.redis.zadd("{farm.0}:wl", {worker.name: 1})
    degraded = await client.get("/health")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert degraded.json()["problems"] == [f"model {MODEL!r} has no live worker"]


async def test_a_node_is_ready_once_a_model_is_served(server: NodeServer, client: httpx2.AsyncClient) -> None:
    loading = await client.get("/readyz")
    assert (loading.status_code, loading.json()) == (503, {"status": "no_model"})
    assert (await client.get("/livez")).status_code == 200
    await ModelCatalog(server.node.redis).publish(make_card(), TOKENIZER_JSON)
    assert (await client.get("/readyz")).status_code == 200  # also while its process is being started again


async def test_a_full_queue_is_overloaded(start_node: StartNode, worker: ScriptedWorker) -> None:
    server = await start_node(max_waiting_jobs=1)
    worker.retire()
    await worker.gone.wait()
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        await http.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"})
        health = await http.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "overloaded")


async def test_metrics_count_requests_tokens_and_times(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await client.post(CHAT, json=chat_body())
    await client.post(CHAT, json=chat_body(n=0))
    text = (await client.get("/metrics")).text
    for line in (
        f'farm_http_requests_total{{method="POST",route="{CHAT}",status="200"}} 1.0',
        f'farm_http_requests_total{{method="POST",route="{CHAT}",status="400"}} 1.0',
        f'farm_request_success_total{{finished_reason="stop",model_name="{MODEL}"}} 1.0',
        f'farm_time_to_first_token_seconds_count{{model_name="{MODEL}"}} 1.0',
        f'farm_e2e_request_latency_seconds_count{{model_name="{MODEL}"}} 1.0',
        f'farm_inter_token_latency_seconds_count{{model_name="{MODEL}"}} 3.0',
        f'farm_num_requests_waiting{{lane="normal",model_name="{MODEL}"}} 0.0',
        f'farm_num_requests_running{{model_name="{MODEL}",worker="{worker.name}"}} 1.0',
        f'farm_generation_tokens_total{{model_name="{MODEL}",worker="{worker.name}"}} 42.0',
        f'farm_spec_decode_draft_tokens_total{{model_name="{MODEL}",source="model",worker="{worker.name}"}} 9.0',
        f'farm_spec_decode_accepted_tokens_total{{model_name="{MODEL}",source="ngram",worker="{worker.name}"}} 4.0',
        "farm_queue_up 1.0",
    ):
        assert line in text, line


async def test_rules_route_names_and_lanes(
    server: NodeServer, client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    await put_in_effect(server.node.rules.record, rule("gpt", "prefix", "gpt-", MODEL, lane="low"))
    await server.node.rules.refresh()
    response = await client.post(CHAT, json=chat_body(model="gpt-4o"))
    assert response.status_code == 200, response.text
    assert (response.json()["model"], response.json()["service_tier"]) == ("gpt-4o", "flex")
    assert response.headers["farm-lane"] == "low"
    assert worker.requests[0].model == MODEL


async def test_the_documentation_names_every_endpoint(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/docs")).status_code == 200
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in (
        CHAT,
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/cancel",
        "/v1/jobs/{job_id}/retry",
        "/v1/audit/requests",
        "/admin/models/status",
        "/admin/workers",
        "/health",
        "/metrics",
    ):
        assert path in paths


async def test_the_root_and_the_version_answer(client: httpx2.AsyncClient) -> None:
    assert (await client.head("/")).status_code == 200
    assert (await client.get("/")).json()["name"] == "mlx-farm"
    assert (await client.get("/version")).json()["version"]
    assert (await client.get("/livez")).json() == {"status": "ok"}

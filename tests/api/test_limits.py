"""Limits of a key over HTTP: refusals that say how long, headers of both protocols, places that are free in time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime

import httpx2
import pytest

from api.limit_headers import duration, limit_headers
from scheduler.backpressure import Level, Standing
from tests.api.conftest import StartNode
from tests.api.scripted_farm import Script, ScriptedWorker, all_events, chat_body
from tests.waiting import PATIENCE_S

CHAT = "/v1/chat/completions"

StartClient = Callable[..., Awaitable[httpx2.AsyncClient]]


@pytest.fixture
async def start_client(start_node: StartNode) -> AsyncIterator[StartClient]:
    clients: list[httpx2.AsyncClient] = []

    async def start(**limits: int) -> httpx2.AsyncClient:
        server = await start_node(**{f"limit_{name}": value for name, value in limits.items()})
        clients.append(httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S))
        return clients[-1]

    yield start
    for client in clients:
        await client.aclose()


async def test_requests_per_minute_are_counted_and_refused(start_client: StartClient, worker: ScriptedWorker) -> None:
    client = await start_client(requests_per_minute=2)
    answers = [await client.post(CHAT, json=chat_body()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    refused = answers[2]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests per minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 37  # 30 to 36 s, less what the test has taken
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["anthropic-ratelimit-requests-limit"] == "2"


async def test_both_protocols_headers_are_on_streams_too(start_client: StartClient, worker: ScriptedWorker) -> None:
    client = await start_client(input_tokens_per_minute=1000, output_tokens_per_minute=500)
    async with client.stream("POST", CHAT, json=chat_body(stream=True, max_tokens=20)) as response:
        headers = response.headers
        await response.aread()
    assert headers["anthropic-ratelimit-output-tokens-remaining"] == "480"
    assert headers["x-ratelimit-limit-tokens"] == headers["anthropic-ratelimit-tokens-limit"] == "500"
    assert headers["x-ratelimit-remaining-tokens"] == "480"
    assert headers["x-ratelimit-reset-tokens"] == "2.4s"
    assert datetime.fromisoformat(headers["anthropic-ratelimit-input-tokens-reset"]).tzinfo is not None
    assert "x-ratelimit-limit-requests" not in headers


async def test_a_place_is_free_before_the_client_sees_the_end(
    start_client: StartClient, worker: ScriptedWorker
) -> None:
    client = await start_client(concurrent_jobs=1)
    for _ in range(5):
        assert (await client.post(CHAT, json=chat_body())).status_code == 200
        assert (await all_events(client, "POST", CHAT, json=chat_body(stream=True)))[-1].data == "[DONE]"


async def test_jobs_at_once_are_bounded_async_ones_too(start_client: StartClient, worker: ScriptedWorker) -> None:
    client = await start_client(concurrent_jobs=1)
    worker.script = Script(hold_before=0)
    first = await client.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"})
    assert first.status_code == 202
    for headers in ({}, {"prefer": "respond-async"}):
        refused = await client.post(CHAT, json=chat_body(), headers=headers)
        assert (refused.status_code, "1 jobs at once" in refused.text) == (429, True)


async def test_what_was_not_generated_is_given_back(start_client: StartClient, worker: ScriptedWorker) -> None:
    client = await start_client(output_tokens_per_minute=300)
    for _ in range(4):
        answer = await client.post(CHAT, json=chat_body(max_tokens=250))
        assert answer.status_code == 200, answer.text


async def test_a_request_that_the_queue_refuses_costs_nothing(start_node: StartNode, worker: ScriptedWorker) -> None:
    server = await start_node(limit_requests_per_minute=5, limit_concurrent_jobs=1, max_waiting_tokens=300)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
        for _ in range(9):
            refused = await client.post(CHAT, json=chat_body(max_tokens=350))
            assert "tokens waiting" in refused.json()["error"]["message"]
        answer = await client.post(CHAT, json=chat_body(max_tokens=5))
        assert answer.headers["x-ratelimit-remaining-requests"] == "4"


async def test_a_repeated_idempotency_key_is_charged_once(start_client: StartClient, worker: ScriptedWorker) -> None:
    client = await start_client(requests_per_minute=5)
    answers = [await client.post(CHAT, json=chat_body(), headers={"idempotency-key": "k"}) for _ in range(3)]
    assert len({answer.headers["farm-job-id"] for answer in answers}) == 1
    more = await client.post(CHAT, json=chat_body())
    assert more.headers["x-ratelimit-remaining-requests"] in ("3", "4")  # 4: where the test has taken 12 s


async def test_a_prompt_over_the_minute_is_not_to_be_tried_again(
    start_client: StartClient, worker: ScriptedWorker
) -> None:
    client = await start_client(input_tokens_per_minute=10)
    refused = await client.post(CHAT, json=chat_body())
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in refused.headers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (7.66, "7.66s"), (12, "12s"), (59.999, "60s"), (360, "6m0s"), (3661, "1h1m1s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_key_without_limits_gets_no_headers() -> None:
    assert limit_headers(None) == {}
    assert limit_headers(Standing()) == {}


def test_tokens_are_the_tighter_limit() -> None:
    headers = limit_headers(Standing(input_tokens=Level(100, 90), output_tokens=Level(50, 10)))
    assert headers["x-ratelimit-remaining-tokens"] == "10"

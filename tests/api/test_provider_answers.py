"""Jobs that providers answer: every protocol on this side and both on theirs, over a real queue, record and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from redis.asyncio import Redis

from scheduler.admin_log import COMMAND_LINE
from scheduler.database import open_database
from scheduler.model_events import ModelEvents
from scheduler.provider_settings import ProviderWorkerSettings
from scheduler.provider_store import ProviderStore
from scheduler.providers import read_provider
from scheduler.queue import JobQueue
from scheduler.vault import Vault
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker, all_events, chat_body
from tests.scheduler.ruling import put_in_effect, rule
from tests.waiting import until_async
from tests.workers.providers.stand_in import (
    Reply,
    StandIn,
    anthropic_answer,
    call_block,
    openai_answer,
    openai_calls,
    text_block,
    thinking_block,
)
from workers.providers.agent import ProviderAgent

KEY = "sk-canary-0123456789"
CHAT = "/v1/chat/completions"
BIG, OTHER = "cloud/big", "claude/big"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


class Clouds:
    """Two providers (`cloud` of OpenAI's protocol, `claude` of Anthropic's), and an API node."""

    def __init__(self, server: NodeServer, http: httpx2.AsyncClient, cloud: StandIn, claude: StandIn) -> None:
        self.server, self.http, self.cloud, self.claude = server, http, cloud, claude

    async def ask(self, model: str = BIG, **body: Any) -> httpx2.Response:
        """One chat."""
        return await self.http.post(CHAT, json=chat_body(model=model, **body))

    async def rules(self, *rules: Any) -> None:
        """Put rules in effect."""
        await put_in_effect(self.server.node.rules.record, *rules)
        await self.server.node.rules.refresh()

    async def served(self, *models: str) -> None:
        """Wait until these are served as they should be."""

        async def all_there() -> bool:
            cards = {card.name for card in await self.server.node.catalog.cards()}
            return set(models) <= cards

        await until_async(all_there)


StartAgent = Callable[..., Awaitable[ProviderAgent]]


@pytest.fixture
async def start_agent(redis_server: Any, database_url: str, tmp_path: Path) -> AsyncIterator[StartAgent]:
    """Start provider workers."""
    async with AsyncExitStack() as stack:

        async def start(trusted: str, **changes: Any) -> ProviderAgent:
            defaults: dict[str, Any] = {"home": tmp_path, "redis_url": redis_server.url, "database_url": database_url}
            defaults |= {"provider_hosts": trusted, "lease_s": 20.0, "drain_s": 0.0}
            agent = ProviderAgent(ProviderWorkerSettings(**defaults | changes))
            stop = asyncio.Event()
            task = asyncio.create_task(agent.run(stop))
            stack.push_async_callback(_stopped, stop, task)
            return agent

        yield start


async def _stopped(stop: asyncio.Event, task: asyncio.Task[int]) -> None:
    stop.set()
    assert await task == 0


@pytest.fixture
async def stand_ins() -> AsyncIterator[tuple[StandIn, StandIn]]:
    async with StandIn().running() as cloud, StandIn().running() as claude:
        cloud.replies = [Reply(openai_answer("Hello", ", world"))]
        claude.replies = [Reply(anthropic_answer(text_block("Hello", ", world")))]
        yield cloud, claude


@pytest.fixture
async def clouds(
    start_node: StartNode,
    start_agent: StartAgent,
    stand_ins: tuple[StandIn, StandIn],
    database_url: str,
    tmp_path: Path,
    project: Any,
) -> AsyncIterator[Clouds]:
    server = await start_node()
    cloud, claude = stand_ins
    engine = open_database(database_url)
    store = ProviderStore(engine, Vault(server.node.settings))
    for name, kind, stand_in in (("cloud", "openai", cloud), ("claude", "anthropic", claude)):
        models = [{"name": "big", "input_usd": 2.0, "output_usd": 10.0, "cached_usd": 1.0}]
        said = {"name": name, "kind": kind, "base_url": stand_in.url, "models": models, "concurrency": 4}
        await store.create(read_provider(said), KEY, COMMAND_LINE)
    await server.node.provider_news.tell()
    await engine.dispose()
    await start_agent(f"{cloud.address},{claude.address}", circuit_open_s=3600.0)
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as http:
        clouds = Clouds(server, http, cloud, claude)
        await clouds.served(BIG, OTHER)
        yield clouds


async def _record(clouds: Clouds, project: Any, job_id: str) -> dict[str, Any]:
    await project()
    job: dict[str, Any] = (await clouds.http.get(f"/v1/jobs/{job_id}")).json()
    return job


@pytest.mark.parametrize("model", [BIG, OTHER])
async def test_a_chat_is_answered_counted_and_priced(clouds: Clouds, project: Any, model: str) -> None:
    answer = await clouds.ask(model)
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "Hello, world"
    assert (body["model"], body["choices"][0]["finish_reason"]) == (model, "stop")
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (11, 2, 13)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    job = await _record(clouds, project, answer.headers["farm-job-id"])
    assert (job["model"], job["state"], job["prompt_tokens"], job["output_tokens"]) == (model, "finished", 11, 2)
    assert job["cost_usd"] == pytest.approx((8 * 2 + 3 * 1 + 2 * 10) / 1e6)
    told = [stand_in.requests for stand_in in (clouds.cloud, clouds.claude)]
    assert sorted(len(requests) for requests in told) == [0, 1]


async def test_streams_of_all_three_protocols_say_the_same(clouds: Clouds) -> None:
    for model in (BIG, OTHER):
        async with openai.AsyncOpenAI(base_url=f"{clouds.server.url}/v1", api_key="x", max_retries=0) as sdk:
            chat = await sdk.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in chat]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, world"
            assert chunks[-1].usage is not None
            assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (11, 2)
            response = await sdk.responses.create(model=model, input="Hi", store=False)
            assert response.output_text == "Hello, world"
            assert response.usage is not None
            assert (response.usage.input_tokens, response.usage.output_tokens) == (11, 2)
        async with anthropic.AsyncAnthropic(base_url=clouds.server.url, api_key="x", max_retries=0) as claude:
            async with claude.messages.stream(
                model=model, max_tokens=50, messages=[{"role": "user", "content": "Hi"}]
            ) as stream:
                message = await stream.get_final_message()
            assert [block.text for block in message.content if block.type == "text"] == ["Hello, world"]
            assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (8, 3)
            assert (message.usage.output_tokens, message.stop_reason) == (2, "end_turn")


async def test_thoughts_and_calls_keep_their_kinds_from_either_side_to_either_side(clouds: Clouds) -> None:
    pieces = ('{"x"', ": 1}")
    clouds.cloud.replies = [Reply(openai_calls(("id1", "look", pieces), ("id2", "look", ["{}"]), thought="hm"))]
    blocks = (thinking_block("hm"), call_block("id1", "look", *pieces), call_block("id2", "look"))
    clouds.claude.replies = [Reply(anthropic_answer(*blocks, stop="tool_use"))]
    for model in (BIG, OTHER):
        choice = (await clouds.ask(model, tools=[TOOL])).json()["choices"][0]
        assert (choice["finish_reason"], choice["message"]["reasoning_content"]) == ("tool_calls", "hm")
        calls = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in choice["message"]["tool_calls"]]
        assert calls == [("id1", "look", '{"x": 1}'), ("id2", "look", "{}")]
        body = {"model": model, "max_tokens": 5000, "messages": [{"role": "user", "content": "Hi"}]}
        body |= {
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "tools": [{"name": "look", "input_schema": {}}],
        }
        message = (await clouds.http.post("/v1/messages", json=body)).json()
        kinds = [block["type"] for block in message["content"]]
        assert (kinds, message["stop_reason"]) == (["thinking", "tool_use", "tool_use"], "tool_use")
        assert (message["content"][0]["thinking"], message["content"][1]["input"]) == ("hm", {"x": 1})


async def test_an_async_job_is_answered_too_and_keeps_no_conversation(clouds: Clouds, project: Any) -> None:
    body = {"kind": "chat.completions", "body": chat_body(model=BIG, messages=[{"role": "user", "content": "canary"}])}
    job_id = (await clouds.http.post("/v1/jobs", json=body)).json()["id"]

    async def ended() -> Any:
        job = await _record(clouds, project, job_id)
        return job if job["state"] == "finished" else None

    job = await until_async(ended)
    assert job["result"]["choices"][0]["message"]["content"] == "Hello, world"
    durable = await clouds.server.node.store.durable_job(job_id)
    assert durable is not None
    assert durable.request is not None
    assert b"canary" not in durable.request.encode()


async def test_several_answers_are_several_requests(clouds: Clouds) -> None:
    body = (await clouds.ask(n=3)).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Hello, world"] * 3
    assert (len(clouds.cloud.requests), body["usage"]["completion_tokens"]) == (3, 6)


async def test_who_cancels_closes_the_connection_to_the_provider(clouds: Clouds, project: Any) -> None:
    clouds.cloud.replies = [Reply(openai_answer("Hello", "never"), hold_before=1)]
    asking = asyncio.create_task(clouds.ask())
    await clouds.cloud.holding.wait()
    queue: JobQueue = clouds.server.node.queue
    rows = await clouds.server.node.board.list()
    assert [row["jobs"] for row in rows if row["model"] == OTHER] == [0]
    [job_id] = await _running(queue)
    await clouds.http.post(f"/v1/jobs/{job_id}/cancel")
    await clouds.cloud.left.wait()
    assert (await asking).status_code == 409
    assert (await _record(clouds, project, job_id))["state"] == "cancelled"


async def _running(queue: JobQueue) -> list[str]:
    keys = await queue.redis.keys("{farm.0}:j:*")
    states = {key.decode().rpartition(":j:")[2]: await queue.redis.hget(key, "state") for key in keys}  # type: ignore[misc]
    return [job_id for job_id, state in states.items() if state == b"running"]


TROUBLES = {
    "overloaded": Reply([b'{"error": {"message": "slow down"}}'], 429, {"retry-after": "3600"}),
    "broken": Reply([b"oops"], 500, {}),
    "no key": Reply([b"{}"], 401, {}),
    "garbage": Reply([b"data: {]\n\n"]),
    "html": Reply([b"<html>"], 200, {"content-type": "text/html"}),
    "dropped": Reply([b": hello\n\n"], drop=True),
    "ended early": Reply([b": hello\n\n"]),
    "error in the stream": Reply([b'data: {"error": {"message": "full"}}\n\n']),
}


@pytest.mark.parametrize("first", [0, 4])
async def test_another_provider_takes_over_what_has_said_nothing(clouds: Clouds, project: Any, first: int) -> None:
    await clouds.rules(rule("both", "exact", "gpt", BIG, fallback=[{"provider": "claude", "model": "big"}]))
    troubles = list(TROUBLES.items())[first : first + 4]  # with one more the circuit would open
    for trouble, reply in troubles:
        clouds.cloud.replies = [reply]
        answer = await clouds.ask("gpt")
        assert answer.status_code == 200, trouble
        assert answer.json()["choices"][0]["message"]["content"] == "Hello, world", trouble
        job = await _record(clouds, project, answer.headers["farm-job-id"])
        assert (job["model"], job["routing"]["rule"]) == (OTHER, "both"), trouble
        [passed] = job["routing"]["passed_over"]
        assert passed["model"] == BIG
        assert passed["reason"].startswith("provider_"), trouble
    assert (len(clouds.cloud.requests), len(clouds.claude.requests)) == (4, 4)


async def test_a_model_of_the_farm_takes_over_from_a_provider_and_the_other_way_round(
    clouds: Clouds, worker: ScriptedWorker, project: Any
) -> None:
    clouds.cloud.replies = [TROUBLES["broken"]]
    await clouds.served(MODEL)
    down = rule("down", "exact", "a", BIG, fallback=[{"model": MODEL}])
    up = rule("up", "exact", "b", MODEL, fallback=[{"model": OTHER}])
    await clouds.rules(down, up)
    worker.script = Script(choices=[["<think>hm</think>", "Hel", "lo"]])
    events = await all_events(clouds.http, "POST", CHAT, json=chat_body(model="a", stream=True))
    said = "".join(event.data for event in events)
    assert '"reasoning_content":"hm"' in said
    assert '"content":"Hel"' in said
    answer = await clouds.ask("b")
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert (len(worker.requests), len(clouds.claude.requests)) == (2, 0)


async def test_a_request_that_is_wrong_is_refused_and_not_passed_on(clouds: Clouds) -> None:
    clouds.cloud.replies = [Reply([b'{"error": {"message": "bad schema"}}'], 400, {})]
    await clouds.rules(rule("both", "exact", "gpt", BIG, fallback=[{"model": OTHER}]))
    answer = await clouds.ask("gpt")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert "bad schema" in answer.json()["error"]["message"]
    assert clouds.claude.requests == []


async def test_after_the_first_word_nobody_takes_over_and_the_caller_is_told(clouds: Clouds, project: Any) -> None:
    clouds.cloud.replies = [Reply(openai_answer("Hello", "never")[:1], drop=True)]
    await clouds.rules(rule("both", "exact", "gpt", BIG, fallback=[{"model": OTHER}]))
    events = await all_events(clouds.http, "POST", CHAT, json=chat_body(model="gpt", stream=True))
    assert '"content":"Hello"' in events[1].data
    assert '"code":"provider_unreachable"' in events[-1].data
    assert clouds.claude.requests == []


async def test_who_cannot_honour_a_request_is_no_fallback_for_it(clouds: Clouds, worker: ScriptedWorker) -> None:
    await clouds.served(MODEL)
    await clouds.rules(rule("up", "exact", "b", MODEL, fallback=[{"model": OTHER}]))
    assert (await clouds.ask("b", logprobs=True)).status_code == 200
    assert worker.requests[0].fallbacks == ()
    assert (await clouds.ask("b")).status_code == 200
    assert len(worker.requests[1].fallbacks) == 1
    refused = await clouds.ask(BIG, logprobs=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")


async def test_an_open_circuit_sends_requests_to_the_next_target_at_once(clouds: Clouds, redis: Redis) -> None:
    clouds.cloud.replies = [TROUBLES["broken"]]
    await clouds.rules(rule("both", "exact", "gpt", BIG, fallback=[{"model": OTHER}]))
    for _ in range(7):
        assert (await clouds.ask("gpt")).status_code == 200
    assert (len(clouds.cloud.requests), len(clouds.claude.requests)) == (5, 7)
    facts = await ModelEvents(redis).newest(10, BIG)
    assert [(fact["event"], fact["why"]) for fact in facts] == [("circuit_opened", "provider_error")]

    async def shown() -> bool:
        cards = {card.name: card.state for card in await clouds.server.node.catalog.cards()}
        return cards[BIG] == "circuit open"

    await until_async(shown)
    answer = await clouds.ask("gpt")
    assert answer.status_code == 200
    assert len(clouds.cloud.requests) == 5


async def test_a_job_without_another_target_is_tried_again(clouds: Clouds, project: Any) -> None:
    clouds.cloud.replies = [Reply([b"oops"], 503, {}), Reply(openai_answer("Hello"))]
    answer = await clouds.ask()
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert (await _record(clouds, project, answer.headers["farm-job-id"]))["attempts"] == 2


async def test_a_disabled_provider_serves_nothing_and_a_changed_one_as_it_is_now(clouds: Clouds) -> None:
    assert (await clouds.http.post("/admin/providers/claude/disable")).status_code == 200

    async def gone() -> bool:
        return OTHER not in {card.name for card in await clouds.server.node.catalog.cards()}

    await until_async(gone)
    assert (await clouds.ask(OTHER)).status_code == 404
    assert (await clouds.http.post("/admin/providers/cloud/rotate", json={"key": "sk-new"})).status_code == 200

    async def rotated() -> bool:
        assert (await clouds.ask()).status_code == 200
        return clouds.cloud.requests[-1].headers["authorization"] == "Bearer sk-new"

    await until_async(rotated)


async def test_what_needs_the_model_itself_is_refused(clouds: Clouds) -> None:
    asked: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "Hi"},
        "/v1/embeddings": {"input": "Hi"},
        "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Hi"}]},
        "/v1/responses/input_tokens": {"input": "Hi"},
        "/tokenize": {"prompt": "Hi"},
    }
    for path, body in asked.items():
        answer = await clouds.http.post(path, json={"model": BIG, **body})
        assert answer.status_code == 400, (path, answer.text)
        assert "model_not_supported" in answer.text or "provider" in answer.text, path

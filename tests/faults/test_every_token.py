"""A death behind every single token of an answer: whoever goes on says the rest of it, and the client reads the whole.

API node, queue, consumer and engine are the real ones, in the test's own process, so that a moment costs a few steps of
the engine and no start of a process; tests/faults/test_resumption.py kills real processes at some of them.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

import workers.demo
from bench.history import tokens_of
from scheduler.frames import Chunk as FrameChunk
from scheduler.frames import FrameId
from scheduler.models import ModelCatalog
from scheduler.process import cancel_all
from scheduler.queue import Claimed, JobQueue
from scheduler.tokens import Emission, TokenLog
from scheduler.workers import WorkerBoard
from tests.api.conftest import StartNode
from tests.api.scripted_farm import NodeServer, all_events
from tests.farm.streams import ask
from tests.waiting import PATIENCE_S, until_async
from workers.consumer import Consumer
from workers.engine import Chunk, FinishReason, load_engine
from workers.engine_thread import EngineThread
from workers.model_process import model_card
from workers.room import RowBounds
from workers.use import Use

DEMO = str(Path(workers.demo.__file__).parent)
ROWS = 16

STORY = ask("Tell me a story.", temperature=0, max_tokens=32)
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "animal",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "kind": {"enum": ["bird", "fish"]}, "legs": {"type": "integer"}},
            "required": ["name", "kind", "legs"],
            "additionalProperties": False,
        },
    },
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_forecast",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "sky": {"type": "boolean"}},
            "required": ["unit", "sky"],
            "additionalProperties": False,
        },
    },
}
KINDS = {
    "greedy": STORY,
    "seeded": ask("What are you?", temperature=0.9, seed=3, presence_penalty=0.5, frequency_penalty=0.4, max_tokens=32)
    | {"repetition_penalty": 1.2},
    "schema": ask("Give me a JSON object about a cat.", temperature=1.3, seed=4, response_format=FORM, max_tokens=60)
    | {"ignore_eos": False},
    "thought and call": ask("Hello!", temperature=0, tools=[TOOL], tool_choice="required", reasoning_effort="low")
    | {"ignore_eos": False},
}


@dataclass(frozen=True)
class Answer:
    """What a client has read of one stream."""

    thoughts: str
    text: str
    calls: str
    finish_reason: str


class Worker:
    """What a model process is made of, in this loop; `said` has what the engine made of each job, step by step."""

    def __init__(self, redis: Redis, queue: JobQueue) -> None:
        self.said: dict[str, list[Chunk]] = defaultdict(list)
        self._redis = redis
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._consumers: list[Consumer] = []
        self._engine = EngineThread(
            lambda: load_engine(DEMO, max_sequences=ROWS),
            on_chunks=self._made,
            on_failure=lambda error: None,
        )

    async def load(self) -> None:
        """Load the demo model."""
        self._info = await asyncio.to_thread(self._engine.start)

    async def close(self) -> None:
        """Forget the model."""
        await asyncio.to_thread(self._engine.stop)

    async def announce(self) -> None:
        """Tell API nodes of the model, for a minute."""
        card = model_card("demo", self._info, self._engine.stats.backend, self._engine.context_tokens)
        card = replace(card, obeys_grammars=self._engine.obeys_grammars)
        await ModelCatalog(self._redis).publish(card, self._info.tokenizer_json)
        await WorkerBoard(self._redis).publish("worker-0", {"model": "demo", "running": 0}, ttl_s=600)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Take jobs, under a lease of its own; at the end those in hand are finished first."""
        consumer = Consumer(self._queue, self._engine, "demo", Use(lambda jobs, keep_alive_s: None), RowBounds(ROWS))
        self._consumers.append(consumer)
        name = f"worker-{len(self._consumers)}"
        await self._queue.heartbeat(name, [], register=True)
        consumer.begin_lease(name)
        tasks = [asyncio.create_task(consumer.claim_loop()), asyncio.create_task(consumer.emit_loop())]
        yield
        await consumer.drain(PATIENCE_S)
        await cancel_all(tasks)

    def _made(self, chunks: list[Chunk]) -> None:
        self._loop.call_soon_threadsafe(self._arrived, chunks)

    def _arrived(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self.said[chunk.prompt_id.partition("/")[0]].append(chunk)
        self._consumers[-1].arrived(chunks)


@pytest.fixture
async def worker(redis: Redis, queue: JobQueue) -> AsyncIterator[Worker]:
    """A worker with the demo model, which takes no jobs yet."""
    worker = Worker(redis, queue)
    await worker.load()
    await worker.announce()
    yield worker
    await worker.close()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """As many connections as are asked for."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(timeout=2 * PATIENCE_S, limits=limits) as http:
        yield http


async def read(http: httpx2.AsyncClient, node: NodeServer, body: dict[str, Any]) -> Answer:
    """Ask, and read the whole answer; each event has a later id than the one before."""
    events = await all_events(http, "POST", f"{node.url}/v1/chat/completions", json=body)
    sequences = [event.sequence for event in events if event.sequence is not None]
    assert sequences == sorted(set(sequences))
    assert events[-1].data == "[DONE]"
    told: dict[str, str] = defaultdict(str)
    for event in events[:-1]:
        chunk = json.loads(event.data)
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            delta = choice["delta"]
            told["thoughts"] += delta.get("reasoning_content") or ""
            told["text"] += delta.get("content") or ""
            told["finish_reason"] += choice["finish_reason"] or ""
            for call in delta.get("tool_calls") or ():
                told["calls"] += (call["function"].get("name") or "") + (call["function"].get("arguments") or "")
    return Answer(told["thoughts"], told["text"], told["calls"], told["finish_reason"])


async def undisturbed(
    worker: Worker, http: httpx2.AsyncClient, node: NodeServer, body: dict[str, Any]
) -> tuple[Answer, list[FrameChunk]]:
    """The answer, and the engine's steps towards it as they would be in the log, one by one."""
    await worker.announce()
    async with worker.working():
        answer = await read(http, node, body)
    (steps,) = worker.said.values()
    worker.said.clear()
    return answer, [_logged(chunk) for chunk in steps if chunk.token_ids or chunk.text or chunk.finish_reason]


def _logged(chunk: Chunk) -> FrameChunk:
    assert chunk.finish_reason in (None, FinishReason.STOP, FinishReason.LENGTH)
    reason = chunk.finish_reason.value if chunk.finish_reason else None
    return FrameChunk(0, chunk.token_ids, chunk.text, None, reason, chunk.stop_string)


async def die_everywhere(queue: JobQueue, steps: Sequence[FrameChunk]) -> list[str]:
    """One worker that has taken all jobs dies: it has said nothing of the first, one step of the second, and so on."""
    await queue.heartbeat("dying", [], register=True)
    held: list[Claimed] = []

    async def all_claimed() -> bool:
        """For a moment, jobs whose prompt another worker has read are left to that one."""
        rows = len(steps) + 1 - len(held)
        held.extend(await queue.claim("dying", "demo", rows=rows, nonce=f"{rows}", idle=False))
        return len(held) == len(steps) + 1

    await until_async(all_claimed)
    log = TokenLog(queue)
    for count, job in enumerate(held):
        frames = [(FrameId(job.generation, number + 1), (steps[number],)) for number in range(count)]
        await log.emit([Emission(job.id, job.token, frame_id, body) for frame_id, body in frames])
    while await queue.reap(0, worker="dying"):
        continue
    return [job.id for job in held]


async def answers_after_deaths(
    worker: Worker, queue: JobQueue, http: httpx2.AsyncClient, node: NodeServer, body: dict[str, Any]
) -> list[Answer]:
    """The undisturbed answer, and then one for each number of steps after which its first worker died.

    All go on in one batch; the tokens in their logs are compared here.
    """
    answer, steps = await undisturbed(worker, http, node, body)
    assert len(steps) > 8
    await worker.announce()
    clients = [asyncio.create_task(read(http, node, body)) for _ in range(len(steps) + 1)]

    async def all_wait() -> bool:
        return sum((await queue.depths("demo")).values()) == len(clients)

    await until_async(all_wait)
    jobs = await die_everywhere(queue, steps)
    async with worker.working():
        disturbed = await asyncio.gather(*clients)
    tokens = tuple(token for step in steps for token in step.token_ids)
    for job_id in jobs:
        assert tokens_of(await TokenLog(queue).read(job_id))[0] == tokens
        snapshot = await queue.snapshot(job_id)
        assert snapshot is not None
        assert (snapshot["state"], snapshot["attempt"], snapshot["crashes"]) == ("finished", "2", "1")
    return [answer, *disturbed]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_death_behind_any_token_changes_no_answer(
    worker: Worker, queue: JobQueue, http: httpx2.AsyncClient, start_node: StartNode, kind: str
) -> None:
    """F18: sampler, penalties, grammar, thoughts and calls stand where the first worker left them."""
    answers = await answers_after_deaths(worker, queue, http, await start_node(), KINDS[kind])
    assert set(answers) == {answers[0]}
    if kind == "schema":
        assert set(json.loads(answers[0].text)) == {"name", "kind", "legs"}
    if kind == "thought and call":
        assert answers[0].thoughts
        assert answers[0].calls.startswith("get_forecast{")
        assert answers[0].finish_reason == "tool_calls"


async def test_a_death_within_a_stop_string_shows_none_of_it(
    worker: Worker, queue: JobQueue, http: httpx2.AsyncClient, start_node: StartNode
) -> None:
    """F18: the stop string begins behind the middle of the text and is made of several tokens, which are held back."""
    node = await start_node()
    whole, _ = await undisturbed(worker, http, node, STORY)
    start = len(whole.text) * 2 // 3
    stop = whole.text[start : start + 12]
    answers = await answers_after_deaths(worker, queue, http, node, STORY | {"stop": stop, "max_tokens": 64})
    assert set(answers) == {answers[0]}
    assert answers[0].finish_reason == "stop"
    assert whole.text.startswith(answers[0].text)
    assert stop not in answers[0].text

"""`/v1/messages/batches` with the real SDK, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types.messages import MessageBatch

from api.batches.delivery import Delivery
from api.batches.progress import Progress
from api.batches.worker import Errands
from scheduler.outbox import Outbox
from scheduler.settings import BatchSettings
from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker
from tests.waiting import PATIENCE_S

Advance = Callable[[MessageBatch], Awaitable[MessageBatch]]


def ask(custom_id: str, **changes: Any) -> Any:
    params = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}], **changes}
    return {"custom_id": custom_id, "params": params}


@pytest.fixture
async def sdk(server: NodeServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="unused", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def until_ended(
    server: NodeServer, sdk: anthropic.AsyncAnthropic, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> Advance:
    settings = BatchSettings(**server.node.settings.model_dump(), batch_window=4)
    delivery = Delivery(Outbox(server.node.store.engine), None, frozenset())
    errands = Errands(server.node, Progress(server.node, settings), delivery, retention_s=settings.batch_retention_s)

    async def advance(batch: MessageBatch) -> MessageBatch:
        async with asyncio.timeout(PATIENCE_S):
            while batch.processing_status != "ended":
                await errands.advance()
                await project()
                batch = await sdk.messages.batches.retrieve(batch.id)
        return batch

    return advance


async def results(sdk: anthropic.AsyncAnthropic, batch: MessageBatch) -> dict[str, Any]:
    found = [item async for item in await sdk.messages.batches.results(batch.id)]
    assert len({item.custom_id for item in found}) == len(found)
    return {item.custom_id: item.result for item in found}


async def test_a_batch_of_messages_goes_its_way(sdk: anthropic.AsyncAnthropic, until_ended: Advance) -> None:
    batch = await sdk.messages.batches.create(requests=[ask(f"r{i}") for i in range(6)] + [ask("bad", temperature=9)])
    assert (batch.processing_status, batch.request_counts.processing, batch.results_url) == ("in_progress", 7, None)
    batch = await until_ended(batch)
    assert batch.request_counts.to_dict() == {
        "processing": 0,
        "succeeded": 6,
        "errored": 1,
        "canceled": 0,
        "expired": 0,
    }
    assert batch.ended_at is not None
    found = await results(sdk, batch)
    assert found["r3"].type == "succeeded"
    assert found["r3"].message.content[0].text == "Hello, world!"
    assert (found["bad"].type, found["bad"].error.error.type) == ("errored", "invalid_request_error")


async def test_a_canceled_batch_keeps_what_is_done(
    sdk: anthropic.AsyncAnthropic, until_ended: Advance, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=0)
    batch = await sdk.messages.batches.create(requests=[ask(f"r{i}") for i in range(6)])
    batch = await sdk.messages.batches.cancel(batch.id)
    assert batch.processing_status == "canceling"
    assert batch.cancel_initiated_at is not None
    batch = await until_ended(batch)
    worker.resume.set()
    assert batch.request_counts.canceled == 6
    assert {found.type for found in (await results(sdk, batch)).values()} == {"canceled"}


async def test_an_ended_batch_can_be_deleted_and_leaves_nothing(
    sdk: anthropic.AsyncAnthropic, until_ended: Advance, tmp_path: Path
) -> None:
    batch = await sdk.messages.batches.create(requests=[ask("r")])
    with pytest.raises(anthropic.ConflictError):
        await sdk.messages.batches.delete(batch.id)
    with pytest.raises(anthropic.AnthropicError):
        await results(sdk, batch)
    await until_ended(batch)
    assert (await sdk.messages.batches.delete(batch.id)).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await sdk.messages.batches.retrieve(batch.id)
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


async def test_lists_go_both_ways(sdk: anthropic.AsyncAnthropic, until_ended: Advance) -> None:
    made = sorted([(await sdk.messages.batches.create(requests=[ask("r")])).id for _ in range(4)], reverse=True)
    assert [batch.id async for batch in sdk.messages.batches.list(limit=3)] == made
    page = await sdk.messages.batches.list(limit=2, before_id=made[3])
    assert ([batch.id for batch in page.data], page.has_more) == ([made[1], made[2]], True)


async def test_the_synchronous_sdk_creates_and_reads(server: NodeServer, until_ended: Advance) -> None:
    def create() -> MessageBatch:
        with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
            return client.messages.batches.create(requests=[ask("r")])

    def read(batch: MessageBatch) -> Iterable[str]:
        with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
            return [item.custom_id for item in client.messages.batches.results(batch.id)]

    batch = await until_ended(await asyncio.to_thread(create))
    assert await asyncio.to_thread(read, batch) == ["r"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b'{"requests": []}', "requests"),
        (b"{}", "requests"),
        (b'{"requests": [1]}', "requests.0"),
        (b'{"requests": [{"custom_id": "a b", "params": {}}]}', "custom_id"),
        (b'{"requests": [{"custom_id": "a"}]}', "params"),
        (b'{"requests": [{"custom_id": "a", "params": {}}, {"custom_id": "a", "params": {}}]}', "requests.1"),
        (b'{"requests": [{"custom_id": "a", "params": {}}', "JSON"),
        (b"[", "JSON"),
        (b'{"requests": [{"custom_id": "a", "params": {"x": 1e999, "y": "\xff"}}]}', "JSON"),
    ],
)
async def test_a_body_that_is_no_batch_is_refused_by_place(
    client: httpx2.AsyncClient, body: bytes, word: str, tmp_path: Path
) -> None:
    answer = await client.post("/v1/messages/batches", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert word in error["message"]
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []

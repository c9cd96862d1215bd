"""`/v1/batches` with the real SDK, a scripted worker, and the errands of the batches process run step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from openai.types import Batch

from api.batches.delivery import Delivery
from api.batches.progress import Progress
from api.batches.worker import Errands
from scheduler.outbox import Outbox
from scheduler.settings import BatchSettings
from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker, chat_body, until
from tests.waiting import PATIENCE_S

ENDPOINT = "/v1/chat/completions"


def line(custom_id: str, url: str = ENDPOINT, body: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": chat_body() if body is None else body,
    } | changes


class Bench:
    """A farm's batches process, moved by hand."""

    def __init__(self, server: NodeServer, project: Callable[[], Awaitable[None]], **changes: Any) -> None:
        node = server.node
        settings = BatchSettings(**node.settings.model_dump() | changes)
        delivery = Delivery(Outbox(node.store.engine), None, frozenset())
        self.errands = Errands(node, Progress(node, settings), delivery, retention_s=settings.batch_retention_s)
        self.project = project
        self.node = node

    async def until(self, sdk: openai.AsyncOpenAI, batch: Batch, *states: str) -> Batch:
        """Go on until the batch is in one of the states."""
        async with asyncio.timeout(PATIENCE_S):
            while batch.status not in states:
                await self.errands.advance()
                await self.project()
                batch = await sdk.batches.retrieve(batch.id)
        return batch


@pytest.fixture
def bench(server: NodeServer, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]) -> Bench:
    return Bench(server, project, batch_window=4)


async def submit(sdk: openai.AsyncOpenAI, lines: Sequence[dict[str, Any] | bytes], **changes: Any) -> Batch:
    content = b"\n".join(item if isinstance(item, bytes) else orjson.dumps(item) for item in lines)
    file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
    asked: dict[str, Any] = {"endpoint": ENDPOINT, "completion_window": "24h", **changes}
    return await sdk.batches.create(input_file_id=file.id, **asked)


async def lines_of(sdk: openai.AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """A result file by custom_id, which must be unique."""
    if file_id is None:
        return {}
    found = [orjson.loads(raw) for raw in (await sdk.files.content(file_id)).content.splitlines()]
    assert len({item["custom_id"] for item in found}) == len(found)
    return {item["custom_id"]: item for item in found}


async def test_a_batch_goes_its_way_and_every_line_has_the_synchronous_answer(
    sdk: openai.AsyncOpenAI, bench: Bench
) -> None:
    batch = await submit(sdk, [line(f"r{i}") for i in range(10)], metadata={"night": "1"})
    assert (batch.status, batch.metadata) == ("validating", {"night": "1"})
    batch = await bench.until(sdk, batch, "completed")
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 10, "completed": 10, "failed": 0}
    assert batch.error_file_id is None
    output = await lines_of(sdk, batch.output_file_id)
    assert list(output) == [f"r{i}" for i in range(10)]
    answer = output["r3"]["response"]["body"]
    assert answer["choices"][0]["message"]["content"] == "Hello, world!"
    assert (answer["object"], answer["service_tier"]) == ("chat.completion", "flex")
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(
        item["response"]["body"]["usage"]["completion_tokens"] for item in output.values()
    )
    assert batch.model == MODEL
    assert [at for at in (batch.in_progress_at, batch.finalizing_at, batch.completed_at) if at is None] == []


async def test_the_queue_never_holds_more_than_the_window(
    sdk: openai.AsyncOpenAI, bench: Bench, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=0)
    batch = await submit(sdk, [line(f"r{i}") for i in range(20)])
    batch = await bench.until(sdk, batch, "in_progress")
    for _ in range(5):
        await bench.errands.advance()
    found = await bench.node.batches.get("default", "openai", batch.id)
    assert (found.counts.taken, found.counts.open) == (4, 4)
    worker.resume.set()
    assert (await bench.until(sdk, batch, "completed")).request_counts.completed == 20  # type: ignore[union-attr]


async def test_one_bad_request_fails_alone(sdk: openai.AsyncOpenAI, bench: Bench) -> None:
    bodies = {
        "good": chat_body(),
        "parameter": chat_body(temperature=9),
        "model": chat_body(model="nobody/serves-this"),
        "stream": chat_body(stream=True),
        "long": chat_body(max_tokens=10_000),
        "refused": chat_body(messages=[{"role": "user", "content": "explode"}]),
    }
    batch = await submit(sdk, [line(name, body=body) for name, body in bodies.items()])
    batch = await bench.until(sdk, batch, "completed")
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 5)
    errors = await lines_of(sdk, batch.error_file_id)
    told = {
        name: (item["response"]["status_code"], item["response"]["body"]["error"]["code"])
        for name, item in errors.items()
    }
    assert told == {
        "parameter": (400, None),
        "model": (404, "model_not_found"),
        "stream": (400, None),
        "long": (400, "context_length_exceeded"),
        "refused": (400, "template_refused"),
    }
    assert all(
        item["error"] is None and item["response"]["request_id"].startswith(batch.id) for item in errors.values()
    )


async def test_an_engines_failure_is_the_lines_own(
    sdk: openai.AsyncOpenAI, bench: Bench, worker: ScriptedWorker
) -> None:
    worker.script = Script(fail={"error_code": "engine_error", "error": "it broke"})
    batch = await bench.until(sdk, await submit(sdk, [line("r")]), "completed")
    [error] = (await lines_of(sdk, batch.error_file_id)).values()
    assert (error["response"]["status_code"], error["response"]["body"]["error"]["message"]) == (500, "it broke")


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[]", "invalid_json_line"),
        (line("r0"), "duplicate_custom_id"),
        (line(""), "invalid_custom_id"),
        ({"method": "POST"}, "missing_required_parameter"),
        (line("x", method="GET"), "invalid_method"),
        (line("x", url="/v1/completions"), "mismatched_endpoint"),
        (line("x", body=None) | {"body": []}, "invalid_body"),
    ],
)
async def test_an_input_that_is_no_batch_fails_before_anything_runs(
    sdk: openai.AsyncOpenAI, bench: Bench, worker: ScriptedWorker, bad: Any, code: str
) -> None:
    batch = await bench.until(sdk, await submit(sdk, [line("r0"), bad]), "failed")
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, 2)]
    assert worker.requests == []


async def test_an_empty_file_and_one_with_too_many_requests_fail(
    sdk: openai.AsyncOpenAI, server: NodeServer, project: Callable[[], Awaitable[None]]
) -> None:
    bench = Bench(server, project, batch_max_requests=2)
    for lines, code in (([b""], "empty_file"), ([line(str(i)) for i in range(3)], "too_many_requests")):
        batch = await bench.until(sdk, await submit(sdk, lines), "failed")
        assert [error.code for error in batch.errors.data] == [code]  # type: ignore[union-attr]


async def test_cancelling_keeps_what_is_done_and_stops_the_rest(
    sdk: openai.AsyncOpenAI, bench: Bench, worker: ScriptedWorker
) -> None:
    batch = await submit(sdk, [line(f"r{i}") for i in range(12)])
    while batch.request_counts is None or not batch.request_counts.completed:
        worker.script = Script(hold_before=0) if len(worker.requests) >= 4 else worker.script
        await bench.errands.advance()
        await bench.project()
        batch = await sdk.batches.retrieve(batch.id)
    await until(lambda: len(worker.requests) > 4)
    assert (await sdk.batches.cancel(batch.id)).status == "cancelling"
    batch = await bench.until(sdk, batch, "cancelled")
    worker.resume.set()
    output, errors = await lines_of(sdk, batch.output_file_id), await lines_of(sdk, batch.error_file_id)
    assert output.keys() | errors.keys() == {f"r{i}" for i in range(12)}
    assert not output.keys() & errors.keys()
    assert {item["error"]["code"] for item in errors.values()} == {"batch_cancelled"}
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(errors))
    assert batch.cancelling_at
    assert batch.cancelled_at
    assert (await sdk.batches.cancel(batch.id)).status == "cancelled"


async def test_the_window_is_a_deadline(sdk: openai.AsyncOpenAI, bench: Bench, worker: ScriptedWorker) -> None:
    worker.script = Script(hold_before=0)
    batch = await submit(sdk, [line(f"r{i}") for i in range(8)], completion_window="1s")
    batch = await bench.until(sdk, batch, "expired")
    worker.resume.set()
    errors = await lines_of(sdk, batch.error_file_id)
    assert {item["error"]["code"] for item in errors.values()} == {"batch_expired"}
    assert len(errors) == 8
    assert batch.expired_at
    with pytest.raises(openai.ConflictError):
        await sdk.batches.cancel(batch.id)


async def test_a_batch_waits_for_a_model_that_went_away(
    sdk: openai.AsyncOpenAI, bench: Bench, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=0)
    batch = await bench.until(sdk, await submit(sdk, [line(f"r{i}") for i in range(6)]), "in_progress")
    await bench.node.catalog.withdraw(MODEL)
    await until(lambda: _unserved(bench))
    worker.resume.set()
    while batch.request_counts is None or batch.request_counts.completed < 4:
        await bench.errands.advance()
        await bench.project()
        batch = await sdk.batches.retrieve(batch.id)
    await bench.errands.advance()
    assert (await sdk.batches.retrieve(batch.id)).status == "in_progress"
    await worker.announce()
    assert (await bench.until(sdk, batch, "completed")).error_file_id is None


async def test_a_batch_whose_input_was_removed_by_hand_fails_and_keeps_what_is_done(
    sdk: openai.AsyncOpenAI, bench: Bench
) -> None:
    batch = await submit(sdk, [line(f"r{i}") for i in range(12)])
    while batch.request_counts is None or not batch.request_counts.completed:
        await bench.errands.advance()
        await bench.project()
        batch = await sdk.batches.retrieve(batch.id)
    bench.node.files.path(batch.input_file_id).unlink()
    batch = await bench.until(sdk, batch, "failed")
    assert batch.errors is not None
    assert [error.code for error in batch.errors.data or ()] == ["input_file_gone"]
    output = await lines_of(sdk, batch.output_file_id)
    assert 0 < len(output) < 12
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), 12 - len(output))


async def test_a_batch_whose_input_is_gone_at_once_or_while_it_is_cancelled_fails_as_well(
    sdk: openai.AsyncOpenAI, bench: Bench, worker: ScriptedWorker
) -> None:
    batch = await submit(sdk, [line("r")])
    bench.node.files.path(batch.input_file_id).unlink()
    batch = await bench.until(sdk, batch, "failed")
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.output_file_id) == (0, None)
    worker.script = Script(hold_before=0)
    batch = await bench.until(sdk, await submit(sdk, [line(f"r{i}") for i in range(8)]), "in_progress")
    bench.node.files.path(batch.input_file_id).unlink()
    await sdk.batches.cancel(batch.id)
    await bench.until(sdk, batch, "failed")
    worker.resume.set()


async def test_a_folder_that_is_away_is_waited_for(sdk: openai.AsyncOpenAI, bench: Bench) -> None:
    batch = await submit(sdk, [line("r")])
    folder = bench.node.files.folder
    away = folder.rename(folder.with_name("away"))
    await bench.errands.advance()
    assert (await sdk.batches.retrieve(batch.id)).status == "validating"
    away.rename(folder)
    await bench.until(sdk, batch, "completed")


async def test_ended_batches_go_after_their_time_with_their_results(
    sdk: openai.AsyncOpenAI, bench: Bench, server: NodeServer, project: Callable[[], Awaitable[None]]
) -> None:
    ended = await bench.until(sdk, await submit(sdk, [line("r"), line("bad", body={})]), "completed")
    await bench.errands.tidy()
    assert (await sdk.batches.retrieve(ended.id)).output_file_id is not None
    running = await submit(sdk, [line("r")])
    strict = Bench(server, project, batch_retention_s=0.001)
    async with asyncio.timeout(60):
        while ended.id in [batch.id async for batch in sdk.batches.list()]:
            await strict.errands.tidy()
    assert [file.id async for file in sdk.files.list()] == [running.input_file_id, ended.input_file_id]
    assert not any(bench.node.files.path(str(file)).exists() for file in (ended.output_file_id, ended.error_file_id))
    assert (await sdk.batches.retrieve(running.id)).status == "validating"


async def test_requests_that_cannot_become_a_batch_are_refused(sdk: openai.AsyncOpenAI, bench: Bench) -> None:
    for changes, param in (
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "tomorrow"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"extra_headers": {"Farm-Webhook": "https://example.com"}}, "Farm-Webhook"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await submit(sdk, [line("r")], **changes)
        assert refused.value.param == param
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.batches.create(input_file_id="file-x", endpoint="/v1/chat/completions", completion_window="24h")
    assert refused.value.param == "input_file_id"
    with pytest.raises(openai.NotFoundError):
        await sdk.batches.retrieve("batch_x")


async def test_a_file_that_is_read_cannot_be_deleted(sdk: openai.AsyncOpenAI, bench: Bench) -> None:
    batch = await submit(sdk, [line("r")])
    with pytest.raises(openai.ConflictError):
        await sdk.files.delete(batch.input_file_id)
    await bench.until(sdk, batch, "completed")
    assert (await sdk.files.delete(batch.input_file_id)).deleted


async def test_lists_come_newest_first_in_pages(sdk: openai.AsyncOpenAI, bench: Bench) -> None:
    made = [(await submit(sdk, [line("r")])).id for _ in range(3)]
    assert [batch.id async for batch in sdk.batches.list(limit=2)] == sorted(made, reverse=True)


async def test_a_process_that_was_overtaken_changes_nothing(
    sdk: openai.AsyncOpenAI, bench: Bench, server: NodeServer, project: Callable[[], Awaitable[None]], tmp_path: Path
) -> None:
    other = Bench(server, project, batch_window=4)
    batch = await submit(sdk, [line(f"r{i}") for i in range(12)])
    while batch.status != "completed":
        await asyncio.gather(bench.errands.advance(), other.errands.advance())
        await project()
        batch = await sdk.batches.retrieve(batch.id)
    assert len(await lines_of(sdk, batch.output_file_id)) == 12


async def _unserved(bench: Bench) -> bool:
    return not await bench.node.catalog.cards()

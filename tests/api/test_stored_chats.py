"""Stored chat completions through the openai SDK: kept with their messages and metadata, listed, changed, forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest

from tests.api.scripted_farm import MODEL, Script, ScriptedWorker, chat_body

MESSAGES: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
]
Project = Callable[[], Awaitable[None]]


async def stored(sdk: openai.AsyncOpenAI, **fields: Any) -> Any:
    """A new stored completion."""
    return await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, store=True, **fields)


async def test_a_stored_completion_is_found_by_its_id(
    sdk: openai.AsyncOpenAI, worker: ScriptedWorker, project: Project
) -> None:
    made = await stored(sdk, metadata={"team": "a"})
    for _ in range(2):  # from the token log, then from the record
        found = await sdk.chat.completions.retrieve(made.id)
        assert found.choices == made.choices
        assert (found.created, found.usage, found.metadata) == (made.created, made.usage, {"team": "a"})
        await project()
    messages = await sdk.chat.completions.messages.list(made.id)
    assert [(message.role, message.content, message.content_parts) for message in messages.data] == [
        ("system", "Be brief.", None),
        ("user", None, messages.data[1].content_parts),
    ]
    assert [message.id for message in messages.data] == [f"{made.id}-0", f"{made.id}-1"]
    behind = await sdk.chat.completions.messages.list(made.id, after=f"{made.id}-0", limit=1)
    assert [message.id for message in behind.data] == [f"{made.id}-1"]


async def test_a_streamed_completion_is_stored_too(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    chunks = [chunk async for chunk in await stored(sdk, stream=True)]
    found = await sdk.chat.completions.retrieve(chunks[0].id)
    assert found.choices[0].message.content == "Hello, world!"


async def test_metadata_changes_and_filters(sdk: openai.AsyncOpenAI, worker: ScriptedWorker, project: Project) -> None:
    first, second = await stored(sdk, metadata={"team": "a"}), await stored(sdk, metadata={"team": "b"})
    third = await stored(sdk, metadata={"team": "b"})
    await sdk.chat.completions.create(model=MODEL, messages=MESSAGES)
    await project()
    changed = await sdk.chat.completions.update(first.id, metadata={"team": "b", "done": "yes"})
    assert changed.metadata == {"team": "b", "done": "yes"}
    assert [each.id async for each in sdk.chat.completions.list(limit=1)] == [first.id, second.id, third.id]
    newest = await sdk.chat.completions.list(order="desc", model=MODEL, metadata={"team": "b"}, limit=2)
    assert [each.id for each in newest.data] == [third.id, second.id]
    assert newest.has_more
    assert [each.id async for each in sdk.chat.completions.list(metadata={"done": "yes"})] == [first.id]
    assert (await sdk.chat.completions.list(model="other")).data == []


async def test_what_was_deleted_is_forgotten(sdk: openai.AsyncOpenAI, worker: ScriptedWorker, project: Project) -> None:
    made = await stored(sdk)
    await project()
    assert (await sdk.chat.completions.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await sdk.chat.completions.retrieve(made.id)
    assert (await sdk.chat.completions.list()).data == []


async def test_only_what_was_stored_and_answered_is_found(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    plain = await sdk.chat.completions.create(model=MODEL, messages=MESSAGES)
    worker.script = Script(fail={"error_code": "engine_error", "error": "broken"})
    with pytest.raises(openai.InternalServerError) as failed:
        await stored(sdk)
    job_id = failed.value.response.headers.get("farm-job-id", "0-01ARZ3NDEKTSV4RRFFQ69G5FAV")
    for completion in (plain.id, f"chatcmpl-{job_id}", "chatcmpl-nonsense"):
        with pytest.raises(openai.NotFoundError):
            await sdk.chat.completions.retrieve(completion)


async def test_a_job_says_that_store_adds_nothing(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.post("/v1/jobs", json={"kind": "chat.completions", "body": chat_body(store=True)})
    assert (response.status_code, response.headers["farm-ignored-params"]) == (202, "store")

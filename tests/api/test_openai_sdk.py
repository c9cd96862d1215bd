"""The openai SDK, as released, against this server: sync, async, streams, helpers, raw responses, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = Script(choices=[["On it.", '<tool_call>{"name": "get_weather", ', '"arguments": {"city": "Ulm"}}</tool_call>']])


async def test_a_whole_answer(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    answer = await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, seed=1, stop=["x"], logprobs=True)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 13
    assert answer.choices[0].logprobs is not None
    assert answer._request_id


async def test_an_async_stream(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello, world!"
    assert chunks[-1].usage is not None


async def test_comments_between_events_do_not_disturb_the_sdk(
    sdk: openai.AsyncOpenAI, server: NodeServer, worker: ScriptedWorker
) -> None:
    server.node.settings.keepalive_s = 0.02
    worker.script = Script(hold_before=2)
    stream = await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    chunks = []
    async for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == 3:
            asyncio.get_running_loop().call_later(0.2, worker.resume.set)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"


async def test_the_stream_helper_puts_calls_together(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = CALL
    kinds = set()
    async with sdk.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=TOOLS) as stream:
        async for event in stream:
            kinds.add(event.type)
        final = await stream.get_final_completion()
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "On it."
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Ulm"}'
    assert {"content.delta", "content.done", "tool_calls.function.arguments.done"} <= kinds


async def test_raw_responses_have_our_headers(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
    assert raw.headers["farm-job-id"]
    assert raw.headers["x-request-id"]
    assert (await _parsed(raw)).choices[0].message.content == "Hello, world!"


async def _parsed(raw: Any) -> Any:
    parsed = raw.parse()
    return await parsed if asyncio.iscoroutine(parsed) else parsed


async def test_the_sync_client_completes_lists_and_streams(server: NodeServer, worker: ScriptedWorker) -> None:
    def use() -> tuple[str, str, list[str]]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as sdk:
            text = sdk.completions.create(model=MODEL, prompt="Hi", max_tokens=5).choices[0].text
            with sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
                streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return text, streamed, [model.id for model in sdk.models.list()]

    assert await asyncio.to_thread(use) == ("Hello, world!", "Hello, world!", [MODEL])


async def test_errors_are_the_sdks_classes(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.chat.completions.create(model="none", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=5)
    assert bad.value.param == "temperature"
    worker.script = Script(fail={"error_code": "engine_error", "error": "boom"})
    stream = await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="boom"):
        _ = [chunk async for chunk in stream]


async def test_many_streams_at_once_keep_their_texts(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    async def one(n: int) -> list[str]:
        stream = await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, n=n)
        texts = [""] * n
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        return texts

    worker.script = Script(choices=[["a", "b"], ["c"], ["d", "e", "f"]])
    answers = await asyncio.gather(*(one(1 + i % 3) for i in range(32)))
    assert all(texts == ["ab", "c", "def"][: len(texts)] for texts in answers)

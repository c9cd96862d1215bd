"""The anthropic SDK, as released, against this server: sync, async, stream helpers, tool loops, counting, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import beta_async_tool, beta_tool
from pydantic import BaseModel

from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker, prompt_text
from tests.waiting import PATIENCE_S

HI: Any = [{"role": "user", "content": "Hi"}]
TOOLS: Any = [{"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
THOUGHT = ["I wonder.\n</think>", "\n\nYes", "."]


@pytest.fixture
async def claude(server: NodeServer, worker: ScriptedWorker) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The SDK, without retries."""
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="unused", max_retries=0) as sdk:
        yield sdk


async def test_a_whole_message(claude: anthropic.AsyncAnthropic, worker: ScriptedWorker) -> None:
    worker.script = Script(cached_tokens=5)
    message = await claude.messages.create(model=MODEL, max_tokens=50, messages=HI, system="Be brief.")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello, world!"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.cache_read_input_tokens == 5
    assert message.usage.input_tokens + 5 == len(worker.requests[0].prompts[0])
    assert message.usage.output_tokens == 13
    assert message._request_id
    assert "<|im_start|>system\nBe brief.<|im_end|>" in prompt_text(worker.requests[0])


async def test_the_stream_helper_builds_the_same_message(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[["I wonder.\n</think>", "\n\nSure.\n", CALL[:30], CALL[30:]]])
    asked: Any = {"model": MODEL, "max_tokens": 99, "messages": HI, "tools": TOOLS, "thinking": {"type": "adaptive"}}
    kinds = []
    async with claude.messages.stream(**asked) as stream:
        async for event in stream:
            kinds.append(event.type)
        streamed = await stream.get_final_message()
    whole = await claude.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
    assert whole.content[2].to_dict()["input"] == {"city": "Ulm"}
    assert whole.stop_reason == "tool_use"
    skipped = {"id": True, "content": {2: {"id"}}}
    assert streamed.model_dump(exclude=skipped) == whole.model_dump(exclude=skipped)  # type: ignore[arg-type]
    assert {"thinking", "signature", "text", "input_json", "content_block_stop", "message_stop"} <= set(kinds)


async def test_a_tool_runner_goes_round_until_the_answer(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    @beta_async_tool
    async def weather(city: str) -> str:
        """How the weather is.

        Args:
            city: Where.
        """
        worker.script = Script(choices=[["It is ", "sunny."]])
        return f"sunny in {city}"

    worker.script = Script(choices=[["Let me look.", CALL]])
    runner = claude.beta.messages.tool_runner(model=MODEL, max_tokens=99, messages=HI, tools=[weather])
    final = await runner.until_done()
    assert final.content[0].to_dict() == {"type": "text", "text": "It is sunny."}
    assert "<|im_start|>tool\nsunny in Ulm" in prompt_text(worker.requests[1])


class Answer(BaseModel):
    """A form."""

    number: int


async def test_a_schema_of_pydantic_comes_back_as_its_object(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[['{"number"', ": 42}"]])
    parsed = await claude.messages.parse(model=MODEL, max_tokens=50, messages=HI, output_format=Answer)
    assert parsed.parsed_output == Answer(number=42)
    grammar = worker.requests[0].grammar
    assert grammar is not None
    assert "number" in grammar.text


async def test_counting_tells_the_prompt_that_a_message_has(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    prompt: Any = {"model": MODEL, "messages": HI, "system": "s", "tools": TOOLS}
    counted = await claude.messages.count_tokens(**prompt)
    await claude.messages.create(max_tokens=9, **prompt)
    assert counted.input_tokens == len(worker.requests[0].prompts[0])
    endless = await claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "x" * 5000}])
    assert endless.input_tokens > 5000
    assert len(worker.requests) == 1


async def test_stop_sequences_and_lengths_are_told_apart(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    sampling = {"temperature": 0.5, "top_k": 3}

    async def stop(max_tokens: int) -> tuple[Any, Any]:
        message = await claude.messages.create(
            model=MODEL, max_tokens=max_tokens, messages=HI, stop_sequences=["END"], extra_body=sampling
        )
        return message.stop_reason, message.stop_sequence

    worker.script = Script(stop_string="END")
    assert await stop(50) == ("stop_sequence", "END")
    assert worker.requests[0].stopping.strings == ("END",)
    assert (worker.requests[0].sampling.temperature, worker.requests[0].sampling.top_k) == (0.5, 3)
    worker.script = Script(finish_reason="length")
    assert await stop(50) == ("max_tokens", None)
    assert await stop(20_000) == ("model_context_window_exceeded", None)
    assert worker.requests[-1].stopping.max_tokens < 400


async def test_thoughts_that_are_not_displayed_come_back_with_their_signature(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[THOUGHT])
    asked: Any = {"model": MODEL, "max_tokens": 99, "thinking": {"type": "adaptive", "display": "omitted"}}
    async with claude.messages.stream(messages=HI, **asked) as stream:
        first = await stream.get_final_message()
    thought = first.content[0].to_dict()
    assert (thought["type"], thought["thinking"]) == ("thinking", "")
    assert first.usage.output_tokens_details is not None
    assert first.usage.output_tokens_details.thinking_tokens > 0
    await claude.messages.create(messages=[*HI, first.to_param(), *HI], **asked)
    assert worker.requests[1].prompt_tokens > worker.requests[0].prompt_tokens


async def test_thoughts_that_nobody_asked_for_are_not_in_the_answer(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[["<think>hm</think>", "Yes."]])
    message = await claude.messages.create(model=MODEL, max_tokens=99, messages=HI)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Yes."}]


async def test_models_are_listed_in_this_protocols_shape(
    claude: anthropic.AsyncAnthropic, worker: ScriptedWorker
) -> None:
    models = [model async for model in claude.models.list()]
    assert [(model.id, model.type, model.display_name) for model in models] == [(MODEL, "model", MODEL)]
    one = await claude.models.retrieve(MODEL)
    assert (one.max_input_tokens, one.lifecycle) == (400, "active")
    assert one.created_at.year == 2023


async def test_the_sync_client_does_all_of_it(server: NodeServer, worker: ScriptedWorker) -> None:
    def use() -> list[Any]:
        with anthropic.Anthropic(base_url=server.url, auth_token="unused", max_retries=0) as sdk:
            asked: Any = {"model": MODEL, "max_tokens": 50, "messages": HI}
            with sdk.messages.stream(**asked) as stream:
                streamed = "".join(stream.text_stream)
            raw = "".join(
                event.delta.text
                for event in sdk.messages.create(stream=True, **asked)
                if event.type == "content_block_delta" and event.delta.type == "text_delta"
            )
            counted = sdk.messages.count_tokens(model=MODEL, messages=HI).input_tokens
            return [streamed, raw, counted > 5, [model.id for model in sdk.models.list()]]

    assert await asyncio.to_thread(use) == ["Hello, world!", "Hello, world!", True, [MODEL]]


async def test_errors_are_the_sdks_classes(
    claude: anthropic.AsyncAnthropic, start_node: StartNode, worker: ScriptedWorker
) -> None:
    asked: Any = {"max_tokens": 9, "messages": HI}
    with pytest.raises(anthropic.NotFoundError, match="not served") as missing:
        await claude.messages.create(model="none", **asked)
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 5"):
        await claude.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "x" * 5000}])
    guarded = await start_node(api_key="right")
    async with anthropic.AsyncAnthropic(base_url=guarded.url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model=MODEL, **asked)
    async with anthropic.AsyncAnthropic(base_url=guarded.url, api_key="right", max_retries=0) as friend:
        await friend.messages.create(model=MODEL, **asked)
    async with httpx2.AsyncClient(base_url=guarded.url, headers={"x-api-key": "right"}, timeout=PATIENCE_S) as plain:
        assert (await plain.post("/v1/messages", json={"model": MODEL, **asked})).status_code == 200


async def test_an_error_in_a_stream_is_raised(claude: anthropic.AsyncAnthropic, worker: ScriptedWorker) -> None:
    worker.script = Script(fail={"error_code": "engine_error", "error": "boom"})
    with pytest.raises(anthropic.APIStatusError, match="boom") as failed:
        async with claude.messages.stream(model=MODEL, max_tokens=9, messages=HI) as stream:
            await stream.get_final_message()
    assert json.loads(json.dumps(failed.value.body))["error"]["type"] == "api_error"


async def test_pings_break_a_long_silence(
    claude: anthropic.AsyncAnthropic, server: NodeServer, worker: ScriptedWorker
) -> None:
    server.node.settings.keepalive_s = 0.02
    worker.script = Script(hold_before=2)
    texts = []
    async with claude.messages.stream(model=MODEL, max_tokens=50, messages=HI) as stream:
        async for text in stream.text_stream:
            texts.append(text)
            if len(texts) == 2:
                asyncio.get_running_loop().call_later(0.2, worker.resume.set)
    assert "".join(texts) == "Hello, world!"


async def test_a_streamed_form_and_raw_responses(claude: anthropic.AsyncAnthropic, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[['{"number"', ": 42}"]])
    asked: Any = {"model": MODEL, "max_tokens": 50, "messages": HI}
    async with claude.messages.stream(**asked, output_format=Answer) as stream:
        final = await stream.get_final_message()
    assert final.parsed_output == Answer(number=42)
    raw = await claude.messages.with_raw_response.create(**asked)
    assert (raw.headers["request-id"], (await raw.parse()).stop_reason) == (raw.request_id, "end_turn")
    async with claude.messages.with_streaming_response.create(**asked, stream=True) as unread:
        events = [line async for line in unread.iter_lines() if line.startswith("event:")]
    assert (events[0], events[-1]) == ("event: message_start", "event: message_stop")


async def test_a_sync_tool_runner_streams_its_turns(server: NodeServer, worker: ScriptedWorker) -> None:
    @beta_tool
    def weather(city: str) -> str:
        """How the weather is.

        Args:
            city: Where.
        """
        worker.script = Script(choices=[["It is ", "sunny."]])
        return f"sunny in {city}"

    worker.script = Script(choices=[["Let me look.", CALL]])

    def use() -> list[str]:
        with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as sdk:
            runner = sdk.beta.messages.tool_runner(
                model=MODEL, max_tokens=99, messages=HI, tools=[weather], stream=True
            )
            return ["".join(stream.text_stream) for stream in runner]

    assert await asyncio.to_thread(use) == ["Let me look.", "It is sunny."]
    assert "<|im_start|>tool\nsunny in Ulm" in prompt_text(worker.requests[1])

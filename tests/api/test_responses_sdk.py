"""The Responses API through the openai SDK: created, streamed, kept, gone on from, cancelled, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker, prompt_text, until

TOOL: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
CALL = ['Sure.\n<tool_call>\n{"name": "f", ', '"arguments": {"x"', ": 1}}\n</tool_call>"]
THOUGHT = ["I wonder.\n</think>", "\n\nYes", "."]


async def ask(sdk: openai.AsyncOpenAI, said: Any = "Hi", **more: Any) -> Any:
    """A response that is not streamed."""
    return await sdk.responses.create(model=MODEL, input=said, **more)


async def test_a_response_is_made_and_found_again(
    sdk: openai.AsyncOpenAI, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> None:
    worker.script = Script(cached_tokens=3)
    made = await ask(sdk, instructions="Be kind.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=50)
    assert (made.status, made.output_text, made.instructions) == ("completed", "Hello, world!", "Be kind.")
    assert (made.usage.input_tokens_details.cached_tokens, made.usage.output_tokens) == (3, 13)
    assert made.usage.total_tokens == made.usage.input_tokens + 13
    assert prompt_text(worker.requests[0]).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi")
    assert worker.requests[0].stopping.max_tokens == 50
    assert await sdk.responses.retrieve(made.id) == made
    await project()
    assert await sdk.responses.retrieve(made.id) == made


async def test_a_stream_says_what_the_answer_says(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[THOUGHT])
    async with sdk.responses.stream(model=MODEL, input="Hi", reasoning={"effort": "high"}) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output_text == "Yes."
    assert final.usage is not None
    assert final.usage.output_tokens_details.reasoning_tokens > 0
    last = events[-1]
    assert last.type == "response.completed"
    assert (await sdk.responses.retrieve(final.id)).output == (await _last_output(sdk, final.id))


async def _last_output(sdk: openai.AsyncOpenAI, response_id: str) -> Any:
    """The output in a stream's last event."""
    *_, last = [event async for event in await sdk.responses.retrieve(response_id, stream=True)]
    return last.response.output  # type: ignore[union-attr]


async def test_calls_of_functions_are_answered_by_their_outputs(
    sdk: openai.AsyncOpenAI, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[CALL])
    first = await ask(sdk, tools=[TOOL])
    call = first.output[-1]
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments, call.status) == ("f", '{"x": 1}', "completed")
    worker.script = Script()
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "seven"}]
    second = await ask(sdk, output, tools=[TOOL], previous_response_id=first.id)
    assert second.previous_response_id == first.id
    text = prompt_text(worker.requests[1])
    assert '<|im_start|>assistant\nSure.{"name": "f", "arguments": {"x": 1}}<|im_end|>' in text
    assert "<|im_start|>tool\nseven<|im_end|>" in text
    alone = await ask(
        sdk, [{"role": "user", "content": "Hi"}, *[item.to_dict() for item in first.output], *output], tools=[TOOL]
    )
    assert alone.output_text == "Hello, world!"
    assert prompt_text(worker.requests[2]) == text


async def test_a_conversation_is_listed_in_pages(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    first = await ask(sdk, "One")
    second = await ask(sdk, [{"role": "user", "content": "Two"}], previous_response_id=first.id)
    items = [item async for item in sdk.responses.input_items.list(second.id, order="asc", limit=1)]
    texts = [item.to_dict()["content"][0]["text"] for item in items]  # type: ignore[index]
    assert texts == ["One", "Hello, world!", "Two"]
    newest = await sdk.responses.input_items.list(second.id)
    assert [item.id for item in newest.data] == [item.id for item in items][::-1]
    assert items[1].id == first.output[0].id
    reference: Any = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "Three"}]
    await ask(sdk, reference)
    assert "assistant\nHello, world!<|im_end|>\n<|im_start|>user\nThree" in prompt_text(worker.requests[-1])


async def test_deleted_responses_are_gone_and_unknown_ones_are_told(
    sdk: openai.AsyncOpenAI, client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    made = await ask(sdk)
    answer = await client.delete(f"/v1/responses/{made.id}")
    assert answer.json() == {"id": made.id, "object": "response", "deleted": True}
    for unknown in (made.id, "resp_nothing", "resp_0-01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        with pytest.raises(openai.NotFoundError, match="not found"):
            await sdk.responses.retrieve(unknown)
        with pytest.raises(openai.NotFoundError, match="not found"):
            await sdk.responses.delete(unknown)
        with pytest.raises(openai.NotFoundError) as caught:
            await ask(sdk, previous_response_id=unknown)
        assert caught.value.param == "previous_response_id"


async def test_what_is_not_stored_is_not_found(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    made = await ask(sdk, store=False)
    assert made.output_text == "Hello, world!"
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(made.id)


async def test_in_the_background_a_response_is_polled_and_followed(
    sdk: openai.AsyncOpenAI, worker: ScriptedWorker
) -> None:
    worker.script = Script(hold_before=2)
    made = await ask(sdk, background=True)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    await worker.held.wait()
    assert (await sdk.responses.retrieve(made.id)).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="not finished yet"):
        await ask(sdk, previous_response_id=made.id)
    stream = await sdk.responses.retrieve(made.id, stream=True)
    worker.resume.set()
    events = [event async for event in stream]
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert events[-1].type == "response.completed"
    done = await sdk.responses.retrieve(made.id)
    assert (done.status, done.output_text) == ("completed", "Hello, world!")
    for seen in range(len(events)):
        rest = await sdk.responses.retrieve(made.id, stream=True, starting_after=seen)
        assert [event async for event in rest] == events[seen + 1 :]


async def test_a_stream_in_the_background_outlives_its_reader(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = Script(hold_before=2)
    stream = await sdk.responses.create(model=MODEL, input="Hi", background=True, stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta" and event.delta == ", ":
            break
    await stream.close()
    worker.resume.set()
    response_id = seen[0].response.id  # type: ignore[union-attr]
    rest = await sdk.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    events = seen + [event async for event in rest]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello, world!"
    assert worker.cancelled == []


@pytest.mark.parametrize("held", [True, False])
async def test_a_cancelled_response_stays_as_far_as_it_came(
    sdk: openai.AsyncOpenAI, worker: ScriptedWorker, held: bool
) -> None:
    worker.script = Script(hold_before=2 if held else None)
    made = await ask(sdk, background=True)
    if held:
        await worker.held.wait()
        cancelling = asyncio.create_task(sdk.responses.cancel(made.id))
        await until(lambda: _cancel_is_asked(worker, made.id))
        worker.resume.set()
        cancelled = await cancelling
        assert (cancelled.status, cancelled.output_text) == ("cancelled", "Hello, world")
    else:
        await until(lambda: _has_ended(sdk, made.id))
        assert (await sdk.responses.cancel(made.id)).status == "completed"
    assert await sdk.responses.cancel(made.id) == await sdk.responses.retrieve(made.id)


async def _cancel_is_asked(worker: ScriptedWorker, response_id: str) -> bool:
    return bool((await worker.queue.snapshot(response_id.removeprefix("resp_")) or {}).get("cancel"))


async def _has_ended(sdk: openai.AsyncOpenAI, response_id: str) -> bool:
    return (await sdk.responses.retrieve(response_id)).status not in ("queued", "in_progress")


async def test_a_failed_response_says_so(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = Script(fail={"error_code": "engine_error", "error": "the engine broke"})
    with pytest.raises(openai.InternalServerError, match="the engine broke"):
        await ask(sdk)
    made = await ask(sdk, background=True)
    stream = await sdk.responses.retrieve(made.id, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    failed = await sdk.responses.retrieve(made.id)
    assert failed == last.response
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "server_error", "the engine broke")


async def test_an_answer_that_is_cut_off_is_incomplete(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = Script(finish_reason="length")
    made = await ask(sdk, max_output_tokens=16)
    assert (made.status, made.output[0].status) == ("incomplete", "incomplete")
    assert made.incomplete_details.reason == "max_output_tokens"


class Number(BaseModel):
    """What is asked for."""

    value: int


async def test_structured_answers_are_parsed(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[['{"value"', ": 42}"]])
    parsed = await sdk.responses.parse(model=MODEL, input="Hi", text_format=Number)
    assert parsed.output_parsed == Number(value=42)
    assert worker.requests[0].grammar is not None
    await ask(sdk, text={"format": {"type": "json_object"}})
    assert worker.requests[1].grammar is not None


async def test_input_tokens_are_those_of_the_request(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    counted = await sdk.responses.input_tokens.count(model=MODEL, input="Hi", instructions="Be kind.", tools=[TOOL])
    made = await ask(sdk, instructions="Be kind.", tools=[TOOL])
    assert counted.input_tokens == made.usage.input_tokens
    assert len(worker.requests) == 1


async def test_logprobs_come_where_they_are_included(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    made = await ask(sdk, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = made.output[0].content[0].logprobs
    assert "".join(entry.token for entry in logprobs) == "Hello, world!"
    assert len(logprobs[0].top_logprobs) == 2


async def test_an_idempotent_request_is_one_response(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    made = [await ask(sdk, extra_headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert made[0] == made[1]
    assert len(worker.requests) == 1


async def test_the_sync_sdk_speaks_it_too(server: NodeServer, worker: ScriptedWorker) -> None:
    await asyncio.to_thread(_speak, server.url)


def _speak(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as sdk:
        made = sdk.responses.create(model=MODEL, input="Hi")
        assert made.output_text == "Hello, world!"
        with sdk.responses.stream(model=MODEL, input="Hi", previous_response_id=made.id) as stream:
            assert stream.get_final_response().output_text == "Hello, world!"
        assert sdk.responses.retrieve(made.id).output == made.output
        assert len(list(sdk.responses.input_items.list(made.id))) == 1
        assert sdk.responses.input_tokens.count(model=MODEL, input="Hi").input_tokens > 0
        background = sdk.responses.create(model=MODEL, input="Hi", background=True)
        *_, last = sdk.responses.retrieve(background.id, stream=True)
        assert last.type == "response.completed"
        assert sdk.responses.cancel(background.id).status == "completed"
        sdk.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            sdk.responses.retrieve(made.id)

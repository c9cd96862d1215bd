"""What the openai SDK does beside plain requests: pydantic models as formats and tools, accumulators, raw responses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


class Place(BaseModel):
    """A place."""

    city: str
    zip_code: int


PLACE = Place(city="Ulm", zip_code=89073)
WRITTEN = Script(choices=[['{"city": "Ulm"', ', "zip_', 'code": 89073}']])
CALLED = Script(
    choices=[[f'<tool_call>\n{{"name": "Place", "arguments": {PLACE.model_dump_json()}', "}\n</tool_call>"]]
)


async def test_a_model_as_response_format_is_parsed_whole_and_while_it_streams(
    sdk: openai.AsyncOpenAI, worker: ScriptedWorker
) -> None:
    worker.script = WRITTEN
    whole = await sdk.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Place)
    assert whole.choices[0].message.parsed == PLACE
    assert worker.requests[0].grammar is not None
    partly: list[Any] = []
    async with sdk.chat.completions.stream(model=MODEL, messages=MESSAGES, response_format=Place) as stream:
        async for event in stream:
            if event.type == "content.delta":
                partly.append(event.parsed)
            elif event.type == "content.done":
                assert event.parsed == PLACE
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == PLACE
    assert {"city": "Ulm"} in partly


async def test_a_model_as_a_tool_has_its_arguments_parsed(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = CALLED
    asked: Any = {"model": MODEL, "messages": MESSAGES, "tools": [openai.pydantic_function_tool(Place)]}
    whole = await sdk.chat.completions.parse(**asked)
    called = [call.function.parsed_arguments for call in whole.choices[0].message.tool_calls or ()]
    assert called == [PLACE]
    assert worker.requests[0].grammar is not None  # the helper makes strict tools
    async with sdk.chat.completions.stream(**asked) as stream:
        done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [PLACE]


async def test_an_answer_that_was_cut_off_is_not_parsed(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[['{"city": "U']], finish_reason="length")
    with pytest.raises(openai.LengthFinishReasonError) as cut:
        await sdk.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Place)
    assert cut.value.completion.choices[0].finish_reason == "length"


async def test_the_accumulator_collects_log_probabilities(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    async with sdk.chat.completions.stream(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1) as stream:
        done = [event async for event in stream if event.type == "logprobs.content.done"]
        final = await stream.get_final_completion()
    assert final.choices[0].logprobs is not None
    assert done[0].content == final.choices[0].logprobs.content
    assert "".join(entry.token for entry in done[0].content or ()) == "Hello, world!"


async def test_responses_parse_models_as_formats_and_tools(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    worker.script = WRITTEN
    async with sdk.responses.stream(model=MODEL, input="Hi", text_format=Place) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_parsed == PLACE
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == json.dumps(
        PLACE.model_dump()
    )
    worker.script = CALLED
    made = await sdk.responses.parse(model=MODEL, input="Hi", tools=[openai.pydantic_function_tool(Place)])
    [call] = [item for item in made.output if item.type == "function_call"]
    assert call.parsed_arguments == PLACE


async def test_raw_and_unread_responses(sdk: openai.AsyncOpenAI, worker: ScriptedWorker) -> None:
    asked: Any = {"model": MODEL, "input": "Hi"}
    raw = await sdk.responses.with_raw_response.create(**asked)
    made = raw.parse()
    assert (made.output_text, made._request_id) == ("Hello, world!", raw.headers["x-request-id"])
    streamed = await sdk.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    chunks = [chunk async for chunk in streamed.parse()]
    assert chunks[-1].choices[0].finish_reason == "stop"
    async with sdk.chat.completions.with_streaming_response.create(model=MODEL, messages=MESSAGES) as unread:
        assert unread.headers["farm-job-id"]
        assert json.loads(b"".join([part async for part in unread.iter_bytes()]))["object"] == "chat.completion"
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.responses.with_raw_response.create(**asked, temperature=5)
    assert refused.value.request_id


async def test_the_sync_helpers_parse_and_turn_pages(server: NodeServer, worker: ScriptedWorker) -> None:
    worker.script = WRITTEN

    def use() -> tuple[Any, Any, list[str], list[str]]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as sdk:
            whole = sdk.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Place)
            with sdk.chat.completions.stream(model=MODEL, messages=MESSAGES, response_format=Place) as stream:
                final = stream.until_done().get_final_completion()
            made = [sdk.files.create(file=(f"{name}.txt", b"x"), purpose="user_data").id for name in "abc"]
            listed = [file.id for file in sdk.files.list(limit=1, order="asc")]
            return whole.choices[0].message.parsed, final.choices[0].message.parsed, made, listed

    whole, final, made, listed = await asyncio.to_thread(use)
    assert (whole, final) == (PLACE, PLACE)
    assert listed == made

"""LangChain's chat model for Anthropic as a client: whole and streamed answers, thoughts, tools, structured output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker, prompt_text

CALL = Script(choices=[["On it.", '<tool_call>{"name": "weather", ', '"arguments": {"city": "Ulm"}}</tool_call>']])


class Place(BaseModel):
    """A place."""

    city: str
    zip_code: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Fog in {city}."


def chat_model(server: NodeServer, **changes: Any) -> ChatAnthropic:
    """The settings that docs/clients/langchain.md shows."""
    fields = {"base_url": server.url, "api_key": "unused", "model": MODEL, "max_tokens": 100, "max_retries": 0}
    return ChatAnthropic(**fields | changes)


@pytest.fixture
def model(server: NodeServer) -> ChatAnthropic:
    return chat_model(server)


async def test_a_whole_and_a_streamed_answer(model: ChatAnthropic, worker: ScriptedWorker) -> None:
    answer = await model.ainvoke([SystemMessage("Be brief."), HumanMessage("Hi")])
    assert answer.content == "Hello, world!"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 13
    assert answer.response_metadata["stop_reason"] == "end_turn"
    assert "<|im_start|>system\nBe brief.<|im_end|>" in prompt_text(worker.requests[0])
    whole: Any = None
    async for chunk in model.astream("Hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole.text == "Hello, world!"
    assert whole.usage_metadata["output_tokens"] == 13


async def test_thoughts_are_told_apart_and_go_back(server: NodeServer, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[["I wonder.\n</think>", "\n\nYes", "."]])
    thinking = chat_model(server, thinking={"type": "adaptive"})
    answer = await thinking.ainvoke("Well?")
    assert [block["type"] for block in answer.content_blocks] == ["reasoning", "text"]
    assert answer.text == "Yes."
    await thinking.ainvoke([HumanMessage("Well?"), answer, HumanMessage("Sure?")])
    assert worker.requests[1].prompt_tokens > worker.requests[0].prompt_tokens


async def test_a_turn_with_a_tool(model: ChatAnthropic, worker: ScriptedWorker) -> None:
    worker.script = CALL
    with_tools = model.bind_tools([weather])
    question = HumanMessage("Weather in Ulm?")
    answer = await with_tools.ainvoke([question])
    assert isinstance(answer, AIMessage)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Ulm"})
    worker.script = Script(choices=[["Foggy."]])
    result = ToolMessage(await weather.ainvoke(call["args"]), tool_call_id=call["id"])
    assert (await with_tools.ainvoke([question, answer, result])).content == "Foggy."
    assert "Fog in Ulm." in prompt_text(worker.requests[-1])


async def test_a_streamed_and_forced_tool_call(model: ChatAnthropic, worker: ScriptedWorker) -> None:
    worker.script = CALL
    whole: Any = None
    async for chunk in model.bind_tools([weather], tool_choice="any").astream("Weather in Ulm?"):
        whole = chunk if whole is None else whole + chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Ulm"})]
    assert worker.requests[-1].grammar is not None


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(model: ChatAnthropic, worker: ScriptedWorker, method: Any) -> None:
    place = {"city": "Ulm", "zip_code": 89073}
    call = f'<tool_call>\n{{"name": "Place", "arguments": {json.dumps(place)}}}\n</tool_call>'
    worker.script = Script(choices=[[json.dumps(place) if method == "json_schema" else call]])
    answer = await model.with_structured_output(Place, method=method).ainvoke("Where?")
    assert answer == Place(**place)
    assert worker.requests[-1].grammar is not None

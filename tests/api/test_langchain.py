"""LangChain's chat model for OpenAI as a client: whole and streamed answers, tools, structured output."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
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


@pytest.fixture
def model(server: NodeServer) -> ChatOpenAI:
    """The settings that docs/clients/langchain.md shows."""
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key="unused", model=MODEL, max_retries=0, stream_usage=True)


async def test_a_whole_and_a_streamed_answer(model: ChatOpenAI, worker: ScriptedWorker) -> None:
    answer = await model.ainvoke("Hi")
    assert answer.content == "Hello, world!"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 13
    chunks = [chunk async for chunk in model.astream("Hi")]
    assert "".join(str(chunk.content) for chunk in chunks) == "Hello, world!"
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata][-1]["output_tokens"] == 13


async def test_a_turn_with_a_tool(model: ChatOpenAI, worker: ScriptedWorker) -> None:
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


async def test_a_streamed_tool_call(model: ChatOpenAI, worker: ScriptedWorker) -> None:
    worker.script = CALL
    whole: Any = None
    async for chunk in model.bind_tools([weather]).astream("Weather in Ulm?"):
        whole = chunk if whole is None else whole + chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Ulm"})]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(model: ChatOpenAI, worker: ScriptedWorker, method: Any) -> None:
    place = {"city": "Ulm", "zip_code": 89073}
    call = f'<tool_call>\n{{"name": "Place", "arguments": {json.dumps(place)}}}\n</tool_call>'
    worker.script = Script(choices=[[json.dumps(place) if method == "json_schema" else call]])
    answer = await model.with_structured_output(Place, method=method).ainvoke("Where?")
    assert answer == Place(**place)
    assert worker.requests[-1].grammar is not None

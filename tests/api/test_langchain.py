"""LangChain's chat model for OpenAI as a client: whole and streamed answers, tools, structured output."""

from __future__ import annotations

import pytest
from langchain_openai import ChatOpenAI

from tests.api.langchain_turns import ask_for_structured_output, stream_a_tool_call, take_a_turn_with_a_tool
from tests.api.scripted_farm import MODEL, NodeServer, ScriptedWorker


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
    await take_a_turn_with_a_tool(model, worker)


async def test_a_streamed_tool_call(model: ChatOpenAI, worker: ScriptedWorker) -> None:
    await stream_a_tool_call(model, worker)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(model: ChatOpenAI, worker: ScriptedWorker, method: str) -> None:
    await ask_for_structured_output(model, worker, method)

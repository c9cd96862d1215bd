"""LangChain's chat model for Anthropic as a client: whole and streamed answers, thoughts, tools, structured output."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage

from tests.api.langchain_turns import ask_for_structured_output, stream_a_tool_call, take_a_turn_with_a_tool
from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker, prompt_text


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
    await take_a_turn_with_a_tool(model, worker)


async def test_a_streamed_and_forced_tool_call(model: ChatAnthropic, worker: ScriptedWorker) -> None:
    await stream_a_tool_call(model, worker, tool_choice="any")
    assert worker.requests[-1].grammar is not None


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(model: ChatAnthropic, worker: ScriptedWorker, method: str) -> None:
    await ask_for_structured_output(model, worker, method)

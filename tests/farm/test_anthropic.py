"""Anthropic's protocol against a real farm: an agent's tool loop over several turns, and what its cache saves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from bench.agent_conversation import agent_body, agent_tools, long_context_demo

MODEL = "long-demo"
TURNS = 3


@pytest.fixture(scope="module")
def claude(farm: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    """The SDK on a farm with a model that has room for many tools."""
    folder = long_context_demo(tmp_path_factory.mktemp("long") / "demo", 16384)
    farm.start("workers", FARM_MODEL=str(folder), FARM_MODEL_NAME=MODEL)
    with anthropic.Anthropic(base_url=farm.url, api_key="none", max_retries=9) as sdk:
        yield sdk


def turn(claude: anthropic.Anthropic, body: dict[str, Any]) -> Any:
    """One streamed turn; the SDK's own types do not know all fields that agents send."""
    known = {name: body[name] for name in ("model", "system", "tools", "messages", "thinking", "metadata")}
    extra = {name: value for name, value in body.items() if name not in known and name != "max_tokens"}
    with claude.messages.stream(max_tokens=body["max_tokens"], extra_body=extra, **known) as stream:
        return stream.get_final_message()


def texts(message: Any) -> list[str]:
    """The texts of a message's blocks."""
    return [block.text for block in message.content if block.type == "text"]


def test_an_agents_tool_loop_reads_its_prompt_once(claude: anthropic.Anthropic) -> None:
    tools = agent_tools(6_000)
    messages: list[Any] = [{"role": "user", "content": "Look at the first file."}]
    known_tokens = 0
    for number in range(TURNS):
        body = agent_body(MODEL, tools, messages, turn=number) | {"max_tokens": 60, "thinking": {"type": "disabled"}}
        body["tool_choice"] = {"type": "tool", "name": "Tool1", "disable_parallel_tool_use": True}
        answer = turn(claude, body)
        usage = answer.usage
        prompt_tokens = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
        assert usage.cache_creation_input_tokens > 0
        assert known_tokens - usage.cache_read_input_tokens < 0.02 * prompt_tokens
        known_tokens = prompt_tokens
        calls = [block for block in answer.content if block.type == "tool_use"]
        assert [call.name for call in calls] == ["Tool1"]
        assert answer.stop_reason in ("tool_use", "max_tokens")
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "one line"} for call in calls]
        messages += [answer.to_param(), {"role": "user", "content": results}]
    assert known_tokens > 2000


def test_what_is_streamed_is_what_is_answered_at_once(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "demo", "max_tokens": 40, "messages": [{"role": "user", "content": "What is mlx-farm?"}]}
    whole = claude.messages.create(extra_body={"temperature": 0}, **asked)
    with claude.messages.stream(extra_body={"temperature": 0}, **asked) as stream:
        streamed = stream.get_final_message()
    assert texts(streamed) == texts(whole)
    assert "farm" in texts(whole)[0]
    assert whole.stop_reason == streamed.stop_reason


def test_a_schema_binds_the_text(claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = claude.messages.create(
        model="demo",
        max_tokens=40,
        messages=[{"role": "user", "content": "One or two?"}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    text = "".join(block.text for block in answer.content if block.type == "text")
    assert json.loads(text)["n"] in (1, 2)


def test_a_prompt_can_be_read_ahead(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "demo", "messages": [{"role": "user", "content": "Read this ahead. " * 40}]}
    nothing = claude.messages.create(max_tokens=0, **asked)
    assert (nothing.content, nothing.stop_reason, nothing.usage.output_tokens) == ([], "max_tokens", 0)
    answer = claude.messages.create(max_tokens=4, **asked)
    assert answer.usage.cache_read_input_tokens is not None
    assert answer.usage.cache_read_input_tokens > 100

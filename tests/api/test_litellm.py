"""LiteLLM as a client, by the two providers that people name for servers like this one."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest

from tests.api.scripted_farm import MODEL, NodeServer, Script, ScriptedWorker

with warnings.catch_warnings():  # it imports what is deprecated elsewhere
    warnings.simplefilter("ignore")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for prices
    import litellm

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = Script(choices=[["On it.", '<tool_call>{"name": "weather", ', '"arguments": {"city": "Ulm"}}</tool_call>']])
pytestmark = pytest.mark.filterwarnings("ignore")  # its own, and those of what it brings


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
async def test_answers_and_calls(server: NodeServer, worker: ScriptedWorker, provider: str) -> None:
    asked: dict[str, Any] = {"model": f"{provider}/{MODEL}", "api_base": f"{server.url}/v1", "api_key": "unused"}
    asked |= {"messages": [{"role": "user", "content": "Hi"}], "num_retries": 0}
    answer = await litellm.acompletion(**asked)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.usage.completion_tokens == 13
    stream = await litellm.acompletion(**asked, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello, world!"
    worker.script = CALL
    called = await litellm.acompletion(**asked, tools=TOOLS)
    [call] = called.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Ulm"}')


async def test_reasoning_is_told_apart(server: NodeServer, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[["<think>\nhm\n</think>\n\n", "Yes."]])
    answer = await litellm.acompletion(
        model=f"openai/{MODEL}",
        api_base=f"{server.url}/v1",
        api_key="unused",
        messages=[{"role": "user", "content": "Hi"}],
    )
    assert answer.choices[0].message.reasoning_content == "hm"
    assert answer.choices[0].message.content == "Yes."

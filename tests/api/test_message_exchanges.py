"""Whole exchanges in Anthropic's protocol, as tests/api/test_chat_exchanges.py has them for OpenAI's."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx2
import pytest

from tests.api.scripted_farm import MODEL, Script, ScriptedWorker
from tests.api.test_chat_exchanges import CALL, FOLDER, shown

URL = "/v1/messages"
BODY = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}], "seed": 1}
STREAMED = {"stream": True}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
FORCED = {"tools": [TOOL], "tool_choice": {"type": "any"}}
ADAPTIVE = {"thinking": {"type": "adaptive"}}
THOUGHT = ["I wonder.\n</think>", "\n\nYes", "."]
EXCHANGES: dict[str, tuple[dict[str, Any], Script]] = {
    "plain": ({}, Script(cached_tokens=3)),
    "plain_streamed": (STREAMED, Script(cached_tokens=3)),
    "thinking": (ADAPTIVE, Script(choices=[THOUGHT])),
    "thinking_streamed": (ADAPTIVE | STREAMED, Script(choices=[THOUGHT])),
    "thinking_omitted_streamed": (
        {"thinking": {"type": "adaptive", "display": "omitted"}} | STREAMED,
        Script(choices=[THOUGHT]),
    ),
    "forced_call": (FORCED, Script(choices=[CALL])),
    "forced_call_streamed": (FORCED | STREAMED, Script(choices=[CALL])),
    "stop_sequence": ({"stop_sequences": ["!"]}, Script(choices=[["Hello"]], stop_string="!")),
    "length_streamed": (STREAMED, Script(choices=[["Hello"]], finish_reason="length")),
    "refused": ({"tools": [{"type": "web_search_20260209", "name": "web_search"}]}, Script()),
    "failed_streamed": (STREAMED, Script(choices=[["Hel"]], fail={"error_code": "engine_error", "error": "boom"})),
    "no_model": ({"model": "none"}, Script()),
}


@pytest.mark.parametrize("name", EXCHANGES)
async def test_the_exchange_is_as_it_was(client: httpx2.AsyncClient, worker: ScriptedWorker, name: str) -> None:
    fields, worker.script = EXCHANGES[name]
    body = BODY | fields
    response = await client.post(URL, json=body, headers={"x-request-id": "req-1"})
    exchange = f"{json.dumps(body, indent=1)}\n\n{shown(response)}"
    file = FOLDER / "messages" / f"{name}.txt"
    if os.environ.get("FARM_WRITE_EXCHANGES"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(exchange, encoding="utf-8")
    assert exchange == file.read_text(encoding="utf-8")
    assert response.headers["request-id"] == "req-1"

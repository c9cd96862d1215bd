"""Whole exchanges of the Responses API, byte for byte but for ids and times (see test_chat_exchanges.py)."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.api.scripted_farm import MODEL, Script, ScriptedWorker
from tests.api.test_chat_exchanges import CALL, THOUGHT, compare

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
FAILED = {"error_code": "engine_error", "error": "the engine broke"}
EXCHANGES: dict[str, tuple[dict[str, Any], Script]] = {
    "response": ({"instructions": "Be kind.", "metadata": {"a": "b"}}, Script(cached_tokens=3)),
    "response_streamed": ({"stream": True}, Script(cached_tokens=3)),
    "response_background": ({"background": True}, Script()),
    "response_reasoning_streamed": (
        {"stream": True, "reasoning": {"effort": "high"}, "include": ["reasoning.encrypted_content"]},
        Script(choices=[THOUGHT]),
    ),
    "response_call_streamed": ({"stream": True, "tools": [TOOL], "tool_choice": "required"}, Script(choices=[CALL])),
    "response_incomplete_streamed": ({"stream": True, "max_output_tokens": 16}, Script(finish_reason="length")),
    "response_failed_streamed": ({"stream": True, "background": True}, Script(fail=FAILED)),
    "response_refused": ({"tools": [{"type": "file_search"}]}, Script()),
}


@pytest.mark.parametrize("name", EXCHANGES)
async def test_the_exchange_is_as_it_was(client: httpx2.AsyncClient, worker: ScriptedWorker, name: str) -> None:
    fields, worker.script = EXCHANGES[name]
    body = {"model": MODEL, "input": "Hi", "seed": 1, **fields}
    compare(name, body, await client.post("/v1/responses", json=body))

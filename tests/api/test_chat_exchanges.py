"""Whole exchanges, byte for byte as the client sees them, but for ids and times: formats do not change unnoticed.

Run with FARM_WRITE_EXCHANGES=1 to write `exchanges/` again, and read the difference.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.scripted_farm import Script, ScriptedWorker, chat_body

FOLDER = Path(__file__).parent / "exchanges"
URL = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = ['Sure.\n<tool_call>\n{"name": "f", ', '"arguments": {"x"', ": 1}}\n</tool_call>"]
THOUGHT = ["I wonder.\n</think>", "\n\nYes", "."]
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
NUMBER = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "integer"}}}
IMPOSSIBLE = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}
CHANGING = [
    (re.compile(r"\d-[0-9A-HJKMNP-TV-Z]{26}"), "JOB"),
    (re.compile(r'"(created|created_at|completed_at)":\d+'), r'"\1":0'),
    (re.compile(r"^id: \d+-", re.MULTILINE), "id: CLAIM-"),
    (re.compile(r"call_[0-9a-f]{24}"), "call_ID"),
    (re.compile(r"toolu_[0-9a-f]{24}"), "toolu_ID"),
]
EXCHANGES: dict[str, tuple[dict[str, Any], Script]] = {
    "plain": ({}, Script(cached_tokens=3)),
    "plain_streamed": (USAGE, Script(cached_tokens=3)),
    "two_choices_with_logprobs": ({"n": 2, "logprobs": True, "top_logprobs": 1}, Script(choices=[["a"], ["b"]])),
    "reasoning": ({"reasoning_effort": "high"}, Script(choices=[THOUGHT])),
    "reasoning_streamed": ({"reasoning_effort": "high"} | USAGE, Script(choices=[THOUGHT])),
    "forced_call": ({"tools": [TOOL], "tool_choice": "required"}, Script(choices=[CALL])),
    "forced_call_streamed": ({"tools": [TOOL], "tool_choice": "required"} | USAGE, Script(choices=[CALL])),
    "schema": ({"response_format": NUMBER}, Script(choices=[["4", "2"]])),
    "schema_streamed": ({"response_format": NUMBER} | USAGE, Script(choices=[["4", "2"]], finish_reason="length")),
    "schema_refused": ({"response_format": IMPOSSIBLE} | USAGE, Script()),
    "refused_by_the_engine_streamed": (
        {"response_format": NUMBER} | USAGE,
        Script(
            choices=[[""]], fail={"error_code": "invalid_request", "error": "json_schema: no text fits the grammar"}
        ),
    ),
}


def shown(response: httpx2.Response) -> str:
    """What is frozen of a response."""
    text = f"{response.status_code} {response.headers['content-type']}\n\n{response.text}\n"
    for pattern, word in CHANGING:
        text = pattern.sub(word, text)
    return text


@pytest.mark.parametrize("name", EXCHANGES)
async def test_the_exchange_is_as_it_was(client: httpx2.AsyncClient, worker: ScriptedWorker, name: str) -> None:
    fields, worker.script = EXCHANGES[name]
    body = chat_body(seed=1, **fields)
    compare(name, body, await client.post(URL, json=body))


def compare(name: str, body: dict[str, Any], response: httpx2.Response) -> None:
    """Is it what the file says? Or write the file."""
    exchange = f"{json.dumps(body, indent=1)}\n\n{shown(response)}"
    file = FOLDER / f"{name}.txt"
    if os.environ.get("FARM_WRITE_EXCHANGES"):
        file.write_text(exchange, encoding="utf-8")
    assert exchange == file.read_text(encoding="utf-8")

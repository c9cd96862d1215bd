"""Requests as Open WebUI sends them, and what it is answered, byte for byte but for ids and times.

It asks for the models of a connection, streams its chats, and sends small tasks (titles, tags) beside them. It writes
`max_tokens` for servers that are not OpenAI's, and an index into the calls that it sends back.
"""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.api.scripted_farm import MODEL, Script, ScriptedWorker, prompt_text
from tests.api.test_chat_exchanges import CALL, URL, compare

HEADERS = {
    "Authorization": "Bearer unused",
    "X-OpenWebUI-User-Name": "Ada%20L",
    "X-OpenWebUI-User-Id": "3f0c",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "local:7",
}
QUESTION = {"role": "user", "content": "Weather in Ulm?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        },
    }
]
STREAM = {"stream": True, "model": MODEL, "stream_options": {"include_usage": True}}
PAST_CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
REQUESTS: dict[str, tuple[dict[str, Any], Script]] = {
    "open_webui_chat": (
        STREAM
        | {"messages": [{"role": "system", "content": "Be brief."}, QUESTION]}
        | {"temperature": 0.7, "top_p": 0.9, "max_tokens": 50, "seed": 1, "stop": ["END"], "logit_bias": {"5": -100}},
        Script(),
    ),
    "open_webui_call": (STREAM | {"seed": 1, "messages": [QUESTION], "tools": TOOLS}, Script(choices=[CALL])),
    "open_webui_result": (
        STREAM
        | {"seed": 1, "tools": TOOLS}
        | {
            "messages": [
                QUESTION,
                {"role": "assistant", "content": "", "tool_calls": [PAST_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Fog."},
            ]
        },
        Script(choices=[["Foggy."]]),
    ),
    "open_webui_task": (
        {"model": MODEL, "messages": [{"role": "user", "content": "### Task:\nGenerate a title."}], "stream": False}
        | {"max_tokens": 40},
        Script(choices=[['{ "title": "Fog" }']]),
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_exchange_is_as_it_was(client: httpx2.AsyncClient, worker: ScriptedWorker, name: str) -> None:
    body, worker.script = REQUESTS[name]
    response = await client.post(URL, json=body, headers=HEADERS)
    compare(name, body, response)
    assert "farm-ignored-params" not in response.headers


async def test_results_of_calls_reach_the_model(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    body, worker.script = REQUESTS["open_webui_result"]
    await client.post(URL, json=body, headers=HEADERS)
    assert "<|im_start|>tool\nFog." in prompt_text(worker.requests[0])


async def test_a_connection_is_checked_by_its_models(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.get("/v1/models", headers=HEADERS)
    listed = response.json()
    assert (response.status_code, listed["object"]) == (200, "list")
    assert [(model["id"], model["object"]) for model in listed["data"]] == [(MODEL, "model")]

"""Text completions over HTTP: the four forms of a prompt, echo, logprobs."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.api.scripted_farm import MODEL, TOKENIZER, Script, ScriptedWorker, all_events

URL = "/v1/completions"


def body(**changes: Any) -> dict[str, Any]:
    """A completion request."""
    return {"model": MODEL, "prompt": "Hi", **changes}


def ids(text: str) -> list[int]:
    """Token ids of a text."""
    return list(TOKENIZER.encode(text).ids)


async def test_a_completion_has_text_and_usage(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.post(URL, json=body())
    answer = response.json()
    assert answer["id"] == f"cmpl-{response.headers['farm-job-id']}"
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Hello, world!", "logprobs": None, "finish_reason": "stop"}]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (2, 13)
    assert worker.requests[0].stopping.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("Hi", ["Hi"]), (["Hi", "Ho"], ["Hi", "Ho"]), (ids("Hi"), ["Hi"]), ([ids("Hi"), ids("Ho")], ["Hi", "Ho"])],
)
async def test_prompts_are_texts_or_token_ids(
    client: httpx2.AsyncClient, worker: ScriptedWorker, prompt: Any, prompts: list[str]
) -> None:
    response = await client.post(URL, json=body(prompt=prompt, n=2, echo=True))
    assert response.status_code == 200, response.text
    assert worker.requests[0].prompts == tuple(tuple(ids(text)) for text in prompts)
    texts = [choice["text"] for choice in response.json()["choices"]]
    assert texts == [f"{text}Hello, world!" for text in prompts for _ in range(2)]


async def test_a_stream_echoes_once_and_ends_with_done(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    request = body(stream=True, echo=True, best_of=1, stream_options={"include_usage": True})
    events = await all_events(client, "POST", URL, json=request)
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5, None]
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "HiHello, world!"
    assert chunks[-1]["usage"]["total_tokens"] == 15


async def test_logprobs_are_four_parallel_lists(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[["aé", "b"]])
    choice = (await client.post(URL, json=body(logprobs=1))).json()["choices"][0]
    assert choice["logprobs"] == {
        "tokens": ["a", "\\xc3", "\\xa9", "b"],
        "token_logprobs": [-0.25] * 4,
        "top_logprobs": [{"!": -0.5}] * 4,
        "text_offset": [0, 1, 1, 2],
    }

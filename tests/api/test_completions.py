"""Text completions over HTTP: the four forms of a prompt, echo, logprobs."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.api.scripted_farm import MODEL, TOKENIZER, Script, ScriptedWorker, all_events, announce, make_card

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


async def test_an_echo_with_logprobs_has_those_of_the_prompt_in_front(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[["a"], ["b", "c"]])
    asked = body(prompt=["aé", "Hi"], echo=True, logprobs=1, max_tokens=2)
    first, second = (await client.post(URL, json=asked)).json()["choices"]
    assert (first["text"], second["text"]) == ("aéa", "Hibc")
    assert first["logprobs"] == {
        "tokens": ["a", "\\xc3", "\\xa9", "a"],
        "token_logprobs": [None, -0.75, -0.75, -0.25],
        "top_logprobs": [None, {"\\xc3": -0.75}, {"\\xa9": -0.75}, {"!": -0.5}],
        "text_offset": [0, 1, 1, 2],
    }
    assert second["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert worker.requests[0].prompt_logprobs

    events = await all_events(client, "POST", URL, json=body(echo=True, logprobs=0, stream=True))
    [start, *_] = [json.loads(event.data)["choices"][0] for event in events[:-1]]
    assert start["text"] == "Hia"
    assert start["logprobs"]["tokens"][:2] == ["H", "i"]


async def test_offsets_of_a_prompts_tokens_are_those_of_the_echo(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    prompt = [256, *ids("Hi")]
    [choice] = (await client.post(URL, json=body(prompt=prompt, echo=True, logprobs=0))).json()["choices"]
    assert choice["text"].startswith("<|im_start|>Hi")
    assert choice["logprobs"]["text_offset"][:4] == [0, 12, 13, 14]


@pytest.mark.parametrize(
    ("card", "changes", "param"),
    [
        ({"scores_prompts": False}, {}, "echo"),
        ({"context_tokens": 20_000}, {"prompt": [[5] * 9000, [6] * 9000]}, "prompt"),
        ({"context_tokens": 20_000}, {"prompt": [5] * 9000, "n": 2}, "prompt"),
    ],
)
async def test_prompts_that_cannot_be_scored_are_refused(
    client: httpx2.AsyncClient, worker: ScriptedWorker, card: dict[str, Any], changes: dict[str, Any], param: str
) -> None:
    await announce(worker, make_card(**card), client)
    response = await client.post(URL, json=body(echo=True, logprobs=1, **changes))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)

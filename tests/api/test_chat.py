"""Chat completions over HTTP: whole and streamed, as plain HTTP sees them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from api.errors import end_error
from scheduler.frames import End
from scheduler.jobs import JobState, Lane
from scheduler.requests import Sampling, Stopping
from tests.api.scripted_farm import (
    MODEL,
    Event,
    NodeServer,
    Script,
    ScriptedWorker,
    all_events,
    announce,
    chat_body,
    make_card,
    prompt_text,
    until,
)

URL = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def payloads(events: list[Event]) -> list[dict[str, Any]]:
    """The JSON of all events but [DONE], which must be the last."""
    assert events[-1] == Event(None, "[DONE]")
    return [json.loads(event.data) for event in events[:-1]]


def deltas(chunks: list[dict[str, Any]], key: str = "content") -> str:
    """A string of choice 0, put together."""
    return "".join(choice["delta"].get(key) or "" for chunk in chunks for choice in chunk["choices"])


async def test_a_whole_answer_has_message_usage_and_headers(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(cached_tokens=5)
    response = await client.post(URL, json=chat_body(), headers={"x-request-id": "mine-1"})
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["farm-lane"] == "normal"
    assert float(response.headers["openai-processing-ms"]) >= 0
    body = response.json()
    assert body["id"] == f"chatcmpl-{response.headers['farm-job-id']}"
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["service_tier"] == "default"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt_tokens = len(worker.requests[0].prompts[0])
    assert body["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 13,
        "total_tokens": prompt_tokens + 13,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_a_stream_has_one_event_per_frame_with_the_frames_id(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    body = chat_body(stream=True, stream_options={"include_usage": True})
    events = await all_events(client, "POST", URL, json=body)
    assert [event.sequence for event in events] == [None, 1, 2, 3, 4, 5, None]
    chunks = payloads(events)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:5]] == [
        {"content": piece} for piece in ("Hello", ", ", "world", "!")
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:5]] == [None, None, None, None, "stop"]
    assert chunks[5]["choices"] == []
    assert chunks[5]["usage"]["completion_tokens"] == 13
    assert all(chunk["usage"] is None for chunk in chunks[:5])
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert worker.requests[0].rendering["created_s"] == chunks[0]["created"]


async def test_a_stream_without_usage_ends_after_the_last_frame(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    events = await all_events(client, "POST", URL, json=chat_body(stream=True))
    assert [event.sequence for event in events] == [None, 1, 2, 3, 4, None]
    assert all("usage" not in chunk for chunk in payloads(events))


async def test_usage_can_be_in_every_chunk_and_chunks_can_be_padded(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": True}
    chunks = payloads(await all_events(client, "POST", URL, json=chat_body(stream=True, stream_options=options)))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 5, 7, 12, 13, 13]
    assert {(len(deltas([chunk])) + len(chunk["obfuscation"])) % 32 for chunk in chunks} == {0}


async def test_several_choices_share_the_events_of_their_steps(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[["a", "b"], ["c", "d", "e"]])
    chunks = payloads(await all_events(client, "POST", URL, json=chat_body(stream=True, n=2)))
    assert [[choice["index"] for choice in chunk["choices"]] for chunk in chunks] == [[0, 1], [0, 1], [0, 1], [1]]
    whole = (await client.post(URL, json=chat_body(n=2))).json()
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["ab", "cde"]


async def test_every_sampling_field_reaches_the_job(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "logit_bias": {"65": -100, "66": 5.5},
        "seed": -7,
        "max_tokens": 20,
        "min_tokens": 3,
        "stop": ["x", "yz"],
        "stop_token_ids": [12],
        "ignore_eos": True,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "user": "ann",
        "metadata": {"k": "v"},
    }
    response = await client.post(URL, json=chat_body(**fields))
    assert response.status_code == 200, response.text
    [request] = worker.requests
    assert request.sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        logit_bias=((65, -100.0), (66, 5.5)),
        seed=-7,
    )
    assert request.stopping == Stopping(
        max_tokens=20, min_tokens=3, strings=("x", "yz"), token_ids=(12,), ignore_eos=True
    )
    assert (request.n, request.logprobs) == (3, 2)
    job = (await client.get(f"/v1/jobs/{response.headers['farm-job-id']}")).json()
    assert (job["user"], job["metadata"]) == ("ann", {"k": "v"})


async def test_defaults_fill_the_context_and_draw_a_seed(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await client.post(URL, json=chat_body())
    await client.post(URL, json=chat_body(max_completion_tokens=None, stop=None, stream_options=None))
    first, second = worker.requests
    assert first.stopping.max_tokens == 400 - first.prompt_tokens
    assert first.sampling.seed != second.sampling.seed


@pytest.mark.parametrize(
    ("fields", "headers", "lane", "tier"),
    [
        ({"service_tier": "auto"}, {}, Lane.NORMAL, "default"),
        ({"service_tier": "flex"}, {}, Lane.LOW, "flex"),
        ({"service_tier": "priority"}, {}, Lane.HIGH, "priority"),
        ({"service_tier": "fast"}, {}, Lane.HIGH, "priority"),
        ({"service_tier": "scale"}, {}, Lane.HIGH, "priority"),
        ({"priority": -1}, {}, Lane.HIGH, "priority"),
        ({"priority": 3, "service_tier": "priority"}, {}, Lane.LOW, "flex"),
        ({"service_tier": "flex"}, {"Farm-Lane": "high"}, Lane.HIGH, "priority"),
    ],
)
async def test_the_lane_comes_from_header_priority_or_tier(
    client: httpx2.AsyncClient,
    worker: ScriptedWorker,
    fields: dict[str, Any],
    headers: dict[str, str],
    lane: Lane,
    tier: str,
) -> None:
    response = await client.post(URL, json=chat_body(**fields), headers=headers)
    assert response.headers["farm-lane"] == lane
    assert response.json()["service_tier"] == tier


async def test_messages_of_all_roles_are_rendered(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    response = await client.post(URL, json=chat_body(messages=messages))
    assert response.status_code == 200, response.text
    assert prompt_text(worker.requests[0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\none\ntwo<|im_end|>\n"
        '<|im_start|>assistant\n{"name": "f", "arguments": {"x": 1}}<|im_end|>\n'
        "<|im_start|>tool\n3<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_a_final_assistant_message_can_be_continued(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one, two"}]
    response = await client.post(URL, json=chat_body(messages=messages, continue_final_message=True))
    assert response.status_code == 200, response.text
    assert prompt_text(worker.requests[0]).endswith("<|im_start|>assistant\none, two")


async def test_template_variables_and_the_generation_prompt_are_the_callers(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    await client.post(URL, json=chat_body(chat_template_kwargs={"enable_thinking": True}))
    await client.post(URL, json=chat_body(add_generation_prompt=False))
    assert prompt_text(worker.requests[0]).endswith("<think>\n")
    assert prompt_text(worker.requests[1]).endswith("<|im_end|>\n")


async def test_reasoning_is_split_off_under_both_names(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[["I wo", "nder.\n</th", "ink>\n\nYes", "!"]])
    body = chat_body(reasoning_effort="high", stream=True, stream_options={"include_usage": True})
    chunks = payloads(await all_events(client, "POST", URL, json=body))
    assert deltas(chunks, "reasoning_content") == deltas(chunks, "reasoning") == "I wonder."
    assert deltas(chunks) == "Yes!"
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    message = (await client.post(URL, json=chat_body(reasoning_effort="low"))).json()["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "I wonder."
    assert message["content"] == "Yes!"


async def test_no_effort_means_no_thinking(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await client.post(URL, json=chat_body(reasoning_effort="none"))
    assert "<think>" not in prompt_text(worker.requests[0])


async def test_tool_calls_are_parsed(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    text = ["Sure.\n<tool", '_call>\n{"name": "get_weather", "argu', 'ments": {"city": "Ulm"}}\n</tool_call>', "\n"]
    worker.script = Script(choices=[text])
    message_of = (await client.post(URL, json=chat_body(tools=[TOOL]))).json()["choices"][0]
    assert message_of["finish_reason"] == "tool_calls"
    assert message_of["message"]["content"] == "Sure."
    [call] = message_of["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Ulm"}'}
    chunks = payloads(await all_events(client, "POST", URL, json=chat_body(tools=[TOOL], stream=True)))
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [(part["index"], part["function"]["name"]) for part in parts] == [(0, "get_weather")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert "get_weather" in prompt_text(worker.requests[0])


async def test_a_call_that_cannot_be_read_is_text_and_counted(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[["<tool_call>{oops</tool_call>", " and <tool_call>{"]])
    choice = (await client.post(URL, json=chat_body(tools=[TOOL]))).json()["choices"][0]
    assert choice["message"]["content"] == "<tool_call>{oops</tool_call> and <tool_call>{"
    assert choice["finish_reason"] == "stop"
    metrics = (await client.get("/metrics")).text
    assert f'farm_tool_call_parse_failures_total{{model_name="{MODEL}"}} 2.0' in metrics


async def test_without_tools_the_markers_are_text(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[['<tool_call>{"name": "f"}</tool_call>']])
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        choice = (await client.post(URL, json=chat_body(**fields))).json()["choices"][0]
        assert choice["message"]["content"] == '<tool_call>{"name": "f"}</tool_call>'
    assert "get_weather" not in prompt_text(worker.requests[1])


async def test_a_single_call_stops_at_its_end(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[['<tool_call>{"name": "f"}']], stop_string="</tool_call>")
    response = await client.post(URL, json=chat_body(tools=[TOOL], parallel_tool_calls=False))
    choice = response.json()["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["f"]
    assert choice["finish_reason"] == "tool_calls"
    assert worker.requests[0].stopping.strings == ("</tool_call>",)


async def test_logprobs_have_text_bytes_and_alternatives(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(choices=[["é"]])
    response = await client.post(URL, json=chat_body(logprobs=True, top_logprobs=2))
    [first, second] = response.json()["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("\\xc3", [0xC3], -0.25)
    assert (second["token"], second["bytes"]) == ("\\xa9", [0xA9])
    assert [top["logprob"] for top in first["top_logprobs"]] == [-0.5, -9999.0]


async def test_ignored_fields_are_listed(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    tools = [{"type": "web_search"}, {"type": "function", "function": {"name": "f", "strict": True}}]
    response = await client.post(
        URL, json=chat_body(prompt_cache_key="k", frobnicate=1, tools=tools, store=False, modalities=["text"])
    )
    assert response.status_code == 200, response.text
    ignored = response.headers["farm-ignored-params"].split(", ")
    assert ignored == ["prompt_cache_key", "frobnicate", "tools.0"]


async def test_tools_need_a_model_that_was_made_for_them(server: NodeServer, worker: ScriptedWorker) -> None:
    async with httpx2.AsyncClient(base_url=server.url) as http:
        await announce(worker, make_card(has_tool_calling=False, think_start=None, think_end=None), http)
        for fields in ({"tools": [TOOL]}, {"reasoning_effort": "high"}):
            response = await http.post(URL, json=chat_body(**fields))
            assert response.status_code == 400
            assert response.json()["error"]["param"] == next(iter(fields))


async def test_a_failed_job_is_an_error_in_both_forms(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.script = Script(fail={"error_code": "engine_error", "error": "NaN in the logits"})
    response = await client.post(URL, json=chat_body())
    expected = {"message": "NaN in the logits", "type": "server_error", "param": None, "code": "engine_error"}
    assert (response.status_code, response.json()) == (500, {"error": expected})
    assert response.headers["x-should-retry"] == "false"
    events = await all_events(client, "POST", URL, json=chat_body(stream=True))
    assert json.loads(events[-1].data) == {"error": expected}
    assert events[-1].sequence == 5


async def test_a_deadline_that_passes_is_a_timeout(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    worker.retire()
    await worker.gone.wait()
    request = asyncio.create_task(client.post(URL, json=chat_body(), headers={"farm-timeout": "0.01"}))

    async def expired() -> bool:
        return await worker.queue.expire(0) == 1

    await until(expired)
    response = await request
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (
            End(JobState.FAILED, {"error_code": "context_length_exceeded", "error": "long"}),
            400,
            "context_length_exceeded",
        ),
        (End(JobState.FAILED, {}), 500, "engine_error"),
        (End(JobState.CANCELLED, {"by": "request"}), 409, "cancelled"),
        (End(JobState.EXPIRED, {"error_code": "deadline_exceeded"}), 504, "timeout"),
        (End(JobState.DEAD, {"error_code": "worker_lost"}), 500, "worker_lost"),
    ],
)
def test_every_other_end_is_an_error(end: End, status: int, code: str) -> None:
    error = end_error(end)
    assert (error.status_code, error.code) == (status, code)
    assert set(error.body()["error"]) == {"message", "type", "param", "code"}

"""Bad input gets a clear error with the field's path, and nothing reaches the queue."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.app import create_app
from scheduler.queue import JobQueue
from scheduler.settings import ApiSettings
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, NodeServer, ScriptedWorker, chat_body
from tests.waiting import PATIENCE_S

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = {"role": "user", "content": "Hi"}


def completion_body(**changes: Any) -> dict[str, Any]:
    """A completion request."""
    return {"model": MODEL, "prompt": "Hi", **changes}


def schema_body(schema: Any) -> dict[str, Any]:
    """A request for JSON of a schema."""
    return chat_body(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def call_body(choice: Any, **function: Any) -> dict[str, Any]:
    """A request with one tool."""
    return chat_body(tools=[{"type": "function", "function": {"name": "f", **function}}], tool_choice=choice)


def only(message: dict[str, Any]) -> dict[str, Any]:
    """A conversation of one message."""
    return chat_body(messages=[message])


INVALID_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": [USER]}, "model"),
    (chat_body(model=""), "model"),
    (chat_body(model=5), "model"),
    ({"model": MODEL}, "messages"),
    (chat_body(messages=[]), "messages"),
    (chat_body(messages="Hi"), "messages"),
    (chat_body(messages=[5]), "messages.0"),
    (only({"role": "robot", "content": "x"}), "messages.0.role"),
    (only({"role": "function", "name": "f", "content": "x"}), "messages.0.role"),
    (only({"content": "x"}), "messages.0.role"),
    (only({"role": "user"}), "messages.0.content"),
    (only({"role": "user", "content": 5}), "messages.0.content"),
    (only({"role": "user", "content": [{"text": "x"}]}), "messages.0.content.0.type"),
    (only({"role": "user", "content": [{"type": "text"}]}), "messages.0.content.0.text"),
    (only({"role": "user", "content": "a\0b"}), "messages.0.content"),
    (
        chat_body(messages=[USER, {"role": "user", "content": [{"type": "text", "text": "\0"}]}]),
        "messages.1.content.0.text",
    ),
    (only({"role": "assistant", "tool_calls": [{"id": "x"}]}), "messages.0.tool_calls.0.function"),
    (chat_body(temperature=5), "temperature"),
    (chat_body(temperature="hot"), "temperature"),
    (chat_body(temperature="1"), "temperature"),
    (chat_body(temperature=-0.1), "temperature"),
    (chat_body(top_p=0), "top_p"),
    (chat_body(top_p=1.5), "top_p"),
    (chat_body(n=0), "n"),
    (chat_body(n=17), "n"),
    (chat_body(n=True), "n"),
    (chat_body(n=1.5), "n"),
    (chat_body(max_tokens=-1), "max_tokens"),
    (chat_body(max_tokens=0), "max_tokens"),
    (chat_body(max_completion_tokens=-1), "max_completion_tokens"),
    (chat_body(max_tokens=5, max_completion_tokens=6), "max_tokens"),
    (chat_body(stop=["x"] * 17), "stop"),
    (chat_body(stop=""), "stop"),
    (chat_body(stop=[5]), "stop.0"),
    (chat_body(seed=2**63), "seed"),
    (chat_body(seed=1.5), "seed"),
    (chat_body(presence_penalty=2.1), "presence_penalty"),
    (chat_body(frequency_penalty=-2.1), "frequency_penalty"),
    (chat_body(logit_bias={"x": 1}), "logit_bias"),
    (chat_body(logit_bias={"999": 1}), "logit_bias"),
    (chat_body(logit_bias={"1": 101}), "logit_bias.1"),
    (chat_body(logprobs=3), "logprobs"),
    (chat_body(logprobs=True, top_logprobs=21), "top_logprobs"),
    (chat_body(top_logprobs=2), "top_logprobs"),
    (chat_body(stream="yes"), "stream"),
    (chat_body(stream_options={"include_usage": True}), "stream_options"),
    (chat_body(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage"),
    (chat_body(service_tier="gold"), "service_tier"),
    (chat_body(tools=[{"type": "function"}]), "tools.0.function"),
    (chat_body(tools=[{"type": "function", "function": {"name": ""}}]), "tools.0.function.name"),
    (chat_body(tools="x"), "tools"),
    (chat_body(tool_choice="auto"), "tool_choice"),
    (chat_body(tool_choice="required"), "tool_choice"),
    (chat_body(tool_choice="required", tools=[{"type": "web_search"}]), "tool_choice"),
    (call_body({"type": "function", "function": {"name": "g"}}), "tool_choice.function.name"),
    (call_body({"type": "function"}), "tool_choice.function.name"),
    (call_body("required", strict=True, parameters={"not": {}}), "tools.0.function.parameters"),
    (call_body("auto", strict=True, parameters={"not": {}}), "tools.0.function.parameters"),
    (call_body("required") | {"ignore_eos": True}, "ignore_eos"),
    (
        call_body("required")
        | {"messages": [USER, {"role": "assistant", "content": "x"}], "continue_final_message": True},
        "continue_final_message",
    ),
    (chat_body(reasoning_effort="huge"), "reasoning_effort"),
    (chat_body(top_k=-2), "top_k"),
    (chat_body(min_p=2), "min_p"),
    (chat_body(repetition_penalty=0), "repetition_penalty"),
    (chat_body(min_tokens=-1), "min_tokens"),
    (chat_body(min_tokens=9, max_tokens=8), "min_tokens"),
    (chat_body(stop_token_ids=[-1]), "stop_token_ids.0"),
    (chat_body(stop_token_ids=[258]), "stop_token_ids"),
    (chat_body(chat_template_kwargs={"messages": []}), "chat_template_kwargs.messages"),
    (chat_body(continue_final_message=True), "continue_final_message"),
    (chat_body(metadata={"k": 5}), "metadata.k"),
    (chat_body(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (schema_body(None), "response_format.json_schema"),
    (schema_body(5), "response_format.json_schema.schema"),
    (schema_body({"properties": {"a": {"not": {}}}}), "response_format.json_schema.schema"),
    (schema_body({"type": "no such type"}), "response_format.json_schema.schema"),
    (schema_body({}) | {"min_tokens": 3}, "min_tokens"),
    (schema_body({}) | {"ignore_eos": True}, "ignore_eos"),
    (schema_body({}) | {"guided_regex": "x"}, "guided_regex"),
    (chat_body(guided_json="{"), "guided_json"),
    (chat_body(guided_json="[]"), "guided_json"),
    (chat_body(guided_regex="("), "guided_regex"),
    (chat_body(guided_choice=[]), "guided_choice"),
    (chat_body(structured_outputs={}), "structured_outputs"),
    (chat_body(structured_outputs={"regex": "(?=x)"}), "structured_outputs.regex"),
    (
        chat_body(
            messages=[USER, {"role": "assistant", "content": "x"}],
            continue_final_message=True,
            response_format={"type": "json_object"},
        ),
        "continue_final_message",
    ),
    (chat_body(user=5), "user"),
]

UNSUPPORTED_CHAT: list[tuple[dict[str, Any], str]] = [
    (
        only({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        "messages.0.content.0.image_url",
    ),
    (only({"role": "user", "content": [{"type": "input_audio"}]}), "messages.0.content.0.type"),
    (call_body({"type": "custom"}), "tool_choice.type"),
    (chat_body(response_format={"type": "structural_tag"}), "response_format.type"),
    (chat_body(structured_outputs={"structural_tag": "x"}), "structured_outputs.structural_tag"),
    (chat_body(guided_grammar='start: "a"'), "guided_grammar"),
    (chat_body(modalities=["text", "audio"]), "modalities"),
    (chat_body(audio={"voice": "x"}), "audio"),
    (chat_body(verbosity="low"), "verbosity"),
    (chat_body(web_search_options={}), "web_search_options"),
    (chat_body(functions=[{"name": "f"}]), "functions"),
    (chat_body(function_call={"name": "f"}), "function_call"),
    (chat_body(use_beam_search=True), "use_beam_search"),
    (chat_body(chat_template="x"), "chat_template"),
    (chat_body(prompt_logprobs=1), "prompt_logprobs"),
    (chat_body(return_token_ids=True), "return_token_ids"),
]

INVALID_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"model": MODEL}, "prompt"),
    (completion_body(prompt=[]), "prompt"),
    (completion_body(prompt=""), "prompt"),
    (completion_body(prompt=["a", 5]), "prompt.1"),
    (completion_body(prompt=[1, "a"]), "prompt.1"),
    (completion_body(prompt=[[1], []]), "prompt.1"),
    (completion_body(prompt=[300]), "prompt"),
    (completion_body(prompt={"x": 1}), "prompt"),
    (completion_body(prompt="a\0"), "prompt"),
    (completion_body(prompt=["x"] * 128, n=2), "prompt"),
    (completion_body(logprobs=6), "logprobs"),
    (completion_body(logprobs=True), "logprobs"),
    (completion_body(n=0), "n"),
    (completion_body(max_tokens=-5), "max_tokens"),
]

UNSUPPORTED_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    (completion_body(suffix="x"), "suffix"),
    (completion_body(best_of=2), "best_of"),
]


def cases(*groups: tuple[str, list[tuple[dict[str, Any], str]], str | None]) -> list[Any]:
    """One parameter set per body."""
    return [
        pytest.param(path, body, param, code, id=f"{path.rsplit('/', 2)[-2]}-{index}-{param}")
        for path, bodies, code in groups
        for index, (body, param) in enumerate(bodies)
    ]


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    cases(
        (CHAT, INVALID_CHAT, None),
        (CHAT, UNSUPPORTED_CHAT, "unsupported_parameter"),
        (COMPLETIONS, INVALID_COMPLETIONS, None),
        (COMPLETIONS, UNSUPPORTED_COMPLETIONS, "unsupported_parameter"),
    ),
)
async def test_a_bad_field_is_named(
    shared_client: httpx2.AsyncClient, path: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    response = await shared_client.post(path, json=body)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.status_code, error["type"], error["param"], error["code"]) == (
        400,
        "invalid_request_error",
        param,
        code,
    ), error["message"]
    assert param.rsplit(".", maxsplit=1)[-1] in error["message"] or param in error["message"]


@pytest.fixture
async def shared_client(
    redis_server: Any, database_url: str, tmp_path: Path, worker: ScriptedWorker, queue: JobQueue
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without a socket, which is faster; afterwards nothing has been submitted."""
    app = create_app(ApiSettings(home=tmp_path, redis_url=redis_server.url, database_url=database_url))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://farm", timeout=PATIENCE_S) as http,
    ):
        yield http
    assert await queue.redis.xlen("{farm.0}:ev") == 0


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{", "not valid JSON"),
        (b"", "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b'{"model": "\\ud800"}', "not valid JSON"),
        (b'{"temperature": NaN}', "not valid JSON"),
        (b"[" * 5000, "not valid JSON"),
        (b"null", "must be a JSON object"),
    ],
)
async def test_malformed_bodies_are_told_as_such(shared_client: httpx2.AsyncClient, content: bytes, part: str) -> None:
    response = await shared_client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert part in response.json()["error"]["message"]


async def test_another_content_type_is_told_the_right_one(shared_client: httpx2.AsyncClient) -> None:
    for headers in ({"content-type": "application/x-www-form-urlencoded"}, {"content-type": ""}):
        response = await shared_client.post(CHAT, content=json.dumps(chat_body()), headers=headers)
        assert response.status_code == 415
        assert "-H 'Content-Type: application/json'" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
async def test_a_compressed_body_is_refused_and_not_unpacked(shared_client: httpx2.AsyncClient, path: str) -> None:
    """S13: a kilobyte of gzip that would be a megabyte."""
    content = gzip.compress(json.dumps(chat_body(user="x" * 2**20)).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await shared_client.post(path, content=content, headers=headers)
    assert response.status_code == 415
    assert "without Content-Encoding" in response.json()["error"]["message"]
    headers["content-encoding"] = "identity"
    assert (await shared_client.post(CHAT, content=b"{", headers=headers)).status_code == 400


async def test_an_unknown_model_is_404_with_the_nearest_names(shared_client: httpx2.AsyncClient) -> None:
    response = await shared_client.post(CHAT, json=chat_body(model="tiny/mode"))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert MODEL in error["message"]


async def test_a_prompt_over_the_context_is_told_both_numbers(shared_client: httpx2.AsyncClient) -> None:
    for body in (chat_body(messages=[{"role": "user", "content": "x" * 500}]), chat_body(max_tokens=399)):
        response = await shared_client.post(CHAT, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "400" in error["message"]
        assert "prompt has" in error["message"]


async def test_a_template_that_raises_is_the_callers_error(shared_client: httpx2.AsyncClient) -> None:
    response = await shared_client.post(CHAT, json=only({"role": "user", "content": "explode"}))
    assert response.status_code == 400
    assert "this model does not explode" in response.json()["error"]["message"]


async def test_bodies_over_the_limit_are_413_also_without_a_length(
    start_node: StartNode, worker: ScriptedWorker
) -> None:
    server = await start_node(body_limit_bytes=2000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b" " * 900

    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        for content in (b" " * 3000, chunks()):
            response = await http.post(CHAT, content=content, headers={"content-type": "application/json"})
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "request_too_large"


async def test_unknown_places_and_methods_have_the_same_shape(shared_client: httpx2.AsyncClient) -> None:
    nowhere = await shared_client.get("/v1/nowhere")
    assert (nowhere.status_code, nowhere.json()["error"]["type"]) == (404, "invalid_request_error")
    wrong = await shared_client.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "GET is not allowed" in wrong.json()["error"]["message"]
    assert (await shared_client.post("/v1/chat/completions/", json=chat_body())).status_code == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Idempotency-Key", "k" * 256),
        ("Idempotency-Key", "two words"),
        ("Farm-Lane", "express"),
        ("Farm-Timeout", "soon"),
        ("Farm-Timeout", "-1"),
        *(("Farm-Disconnect", value) for value in ("explode", "cancel=3", "continue=", "continue=-1", "continue=1e9")),
    ],
)
async def test_bad_headers_are_named(shared_client: httpx2.AsyncClient, name: str, value: str) -> None:
    response = await shared_client.post(CHAT, json=chat_body(), headers={name: value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


async def test_odd_request_ids_are_replaced(shared_client: httpx2.AsyncClient) -> None:
    response = await shared_client.get("/v1/models", headers={"x-request-id": "evil id"})
    assert response.headers["x-request-id"].startswith("req-")


async def test_a_key_opens_everything_but_health(start_node: StartNode, worker: ScriptedWorker) -> None:
    server: NodeServer = await start_node(api_key="sesame")
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/admin/workers", "/nowhere"):
            refused = await http.get(path, headers={"authorization": "Bearer wrong"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        for headers in ({"authorization": "Bearer sesame"}, {"x-api-key": "sesame"}):
            assert (await http.post(CHAT, json=chat_body(), headers=headers)).status_code == 200
        for path in ("/health", "/livez", "/readyz", "/version", "/"):
            assert (await http.get(path)).status_code == 200
        assert (await http.head("/")).status_code == 200


async def test_a_full_queue_is_429_with_a_time_to_wait(start_node: StartNode, worker: ScriptedWorker) -> None:
    server = await start_node(max_waiting_tokens=1)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        response = await http.post(CHAT, json=chat_body())
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) >= 1000
    assert response.headers["x-should-retry"] == "true"


async def test_a_full_queue_refuses_an_async_job_before_it_is_committed(
    start_node: StartNode, worker: ScriptedWorker
) -> None:
    server = await start_node(max_model_tokens=1)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
        response = await http.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"})
        assert (response.status_code, response.headers["x-should-retry"]) == (429, "true")
    assert await server.node.store.unrelayed(0) == []

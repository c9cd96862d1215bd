"""POST /v1/messages: what becomes of every field and block, and what is refused by name."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import pytest

from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, TEMPLATE, Script, ScriptedWorker, make_card, prompt_text, until
from tests.waiting import PATIENCE_S

URL = "/v1/messages"
BILLING = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.3af; cc_entrypoint=cli;"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}
PIXEL = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"PNG").decode()}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "max_tokens": 20,
        "messages": list(messages or [{"role": "user", "content": "Hi"}]),
        **fields,
    }


async def prompt_of(client: httpx2.AsyncClient, worker: ScriptedWorker, asked: dict[str, Any]) -> str:
    """The prompt that a request becomes."""
    answer = await client.post(URL, json=asked)
    assert answer.status_code == 200, answer.text
    return prompt_text(worker.requests[-1])


async def test_blocks_of_all_kinds_reach_the_template(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    document = {
        "type": "document",
        "title": "Doc",
        "source": {"type": "text", "data": "inside", "media_type": "text/plain"},
    }
    found = {"type": "search_result", "title": "T", "source": "http://s", "content": [{"type": "text", "text": "hit"}]}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "done"}]}
    failed = {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no file", "is_error": True}
    turns = [
        user({"type": "text", "text": "one"}, document, found),
        {"role": "assistant", "content": [{"type": "text", "text": "two"}, USE, {**USE, "id": "toolu_2"}]},
        user(result, failed, {"type": "text", "text": "three"}),
    ]
    prompt = await prompt_of(client, worker, body(*turns, tools=[TOOL], system=[{"type": "text", "text": "zero"}]))
    parts = [
        "system\nzero",
        "user\none\nDoc\ninside\nT\nhttp://s\nhit",
        'assistant\ntwo{"name": "f", "arguments": {"x": 1}}',
    ]
    parts += ["tool\ndone", "tool\nError: no file", "user\nthree"]
    places = [prompt.find(f"<|im_start|>{part}") for part in parts]
    assert min(places) >= 0
    assert places == sorted(places)


async def test_a_changing_billing_block_changes_no_prompt(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    rules = {"type": "text", "text": "Rules."}
    prompts = [
        await prompt_of(client, worker, body(system=[{**BILLING, "text": BILLING["text"] + str(turn)}, rules]))
        for turn in range(2)
    ]
    assert prompts[0] == prompts[1]
    assert "billing" not in prompts[0]


async def test_turns_of_one_role_are_one_turn(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    prompt = await prompt_of(
        client, worker, body(user({"type": "text", "text": "a"}), {"role": "user", "content": "b"})
    )
    assert "<|im_start|>user\na\nb<|im_end|>" in prompt


LATE = (user({"type": "text", "text": "a"}), {"role": "system", "content": "late"}, user({"type": "text", "text": "b"}))
LOOP = "{%- for message in messages -%}"
REFUSAL = "{%- if message.role == 'system' and not loop.first -%}{{- raise_exception('first only') -}}{%- endif -%}"
FIRST_ONLY = TEMPLATE.replace(LOOP, LOOP + REFUSAL)
DROPPED = TEMPLATE.replace(LOOP, "{%- for message in messages if message.role != 'system' -%}")


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (TEMPLATE, ["system\nfirst<", "user\na<", "system\nlate<", "user\nb<"]),
        (FIRST_ONLY, ["system\nfirst<", "user\na\nlate\nb<"]),
        (DROPPED, ["user\nfirst\na\nlate\nb<"]),
    ],
    ids=["anywhere", "first", "nowhere"],
)
async def test_system_messages_stand_where_the_template_takes_them(
    client: httpx2.AsyncClient, worker: ScriptedWorker, template: str, shown: list[str]
) -> None:
    await worker.announce(make_card(chat_template=template))

    async def is_known() -> bool:
        answer = await client.post(URL, json=body(*LATE, system="first"))
        return answer.status_code == 200 and all(part in prompt_text(worker.requests[-1]) for part in shown)

    await until(is_known)


IGNORED: list[tuple[dict[str, Any], list[str]]] = [
    ({"context_management": {"edits": []}, "inference_geo": "eu"}, ["context_management", "inference_geo"]),
    ({"output_config": {"effort": "high"}}, ["output_config.effort"]),
    ({"tools": [{**TOOL, "input_examples": [{}], "eager_input_streaming": True}]}, ["tools.0.input_examples"]),
    ({"metadata": {"user_id": "u", "more": 1}, "cache_control": {"type": "ephemeral"}}, ["metadata.more"]),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}, "unknown": 1, "mcp_servers": []}, ["unknown"]),
]


async def test_what_has_no_effect_is_listed(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    for fields, ignored in IGNORED:
        answer = await client.post(f"{URL}?beta=true", json=body(**fields), headers={"anthropic-beta": "a-1,b-2"})
        assert answer.status_code == 200, answer.text
        assert set(ignored) <= set(answer.headers["farm-ignored-params"].split(", "))


async def test_blocks_of_anthropics_servers_are_left_out_and_listed(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    past = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}]}
    answer = await client.post(
        URL, json=body(user({"type": "text", "text": "q"}), past, user({"type": "text", "text": "b"}))
    )
    assert answer.headers["farm-ignored-params"] == "messages.1.content.0"


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "'max_tokens'"),
    ({"messages": []}, "'messages'"),
    ({"messages": [{"role": "user", "content": "x"}], "max_tokens": "5"}, "'max_tokens'"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'tools.0.type'"),
    ({"tools": [{"name": "f"}]}, "'tools.0.input_schema'"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "'tool_choice.name'"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [{**TOOL, "strict": True, "input_schema": {"not": {}}}], "tool_choice": {"type": "any"}}, "tools.0"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
        "'output_config.format.schema'",
    ),
    ({"mcp_servers": [{"name": "x"}]}, "'mcp_servers'"),
    ({"container": "c"}, "'container'"),
    ({"messages": [user({"type": "image", "source": PIXEL})]}, "'messages.0.content.0'"),
    ({"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]}, "content.0.source"),
    ({"messages": [user({"type": "document", "source": {**PIXEL, "media_type": "application/pdf"}})]}, "source"),
    ({"messages": [user({"type": "tool_result", "tool_use_id": "no"})]}, "'messages.0.content.0.tool_use_id'"),
    ({"messages": [user({"type": "text"})]}, "'messages.0.content.0.text'"),
    ({"messages": [user({"type": "wonder"})]}, "'messages.0.content.0.type'"),
    ({"messages": [{"role": "system", "content": "only"}]}, "'messages'"),
]


async def test_what_cannot_be_honoured_is_refused_by_name(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    for asked, message in REFUSALS:
        refused = await client.post(URL, json=body() | asked)
        error = refused.json()
        assert (refused.status_code, error["type"]) == (400, "error"), asked
        assert error["error"]["type"] == "invalid_request_error"
        assert message in error["error"]["message"]
        assert error["request_id"] == refused.headers["request-id"]


async def test_an_image_in_a_tools_result_is_the_users(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    shown = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image", "source": PIXEL}]}
    turns = [user({"type": "text", "text": "q"}), {"role": "assistant", "content": [USE]}, user(shown)]
    refused = await client.post(URL, json=body(*turns, tools=[TOOL]))
    assert "'messages.2.content.0.content.0'" in refused.json()["error"]["message"]


async def test_an_answer_goes_on_behind_its_beginning(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    prompt = await prompt_of(client, worker, body(*body()["messages"], {"role": "assistant", "content": "The sum is"}))
    assert prompt.endswith("<|im_start|>assistant\nThe sum is")


THINKING: list[tuple[Any, bool]] = [
    (None, False),
    ({"type": "disabled"}, False),
    ({"type": "adaptive"}, True),
    ({"type": "enabled", "budget_tokens": 1024}, True),
    ({"type": "between_tools"}, False),
]


async def test_thinking_is_the_templates_to_open(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    for thinking, opens in THINKING:
        fields = {} if thinking is None else {"thinking": thinking}
        assert (await prompt_of(client, worker, body(**fields))).endswith("<think>\n") is opens, thinking


async def test_a_budget_of_thoughts_is_a_grammar_or_is_listed(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    asked = body(thinking={"type": "enabled", "budget_tokens": 1024})
    listed = await client.post(URL, json=asked)  # </think> is no token of its own here
    assert listed.headers["farm-ignored-params"] == "thinking.budget_tokens"
    await worker.announce(make_card(think_end="<|im_end|>"))

    async def is_bound() -> bool:
        answer = await client.post(URL, json=asked)
        grammar = worker.requests[-1].grammar
        return grammar is not None and "max_tokens=1024" in grammar.text and "farm-ignored-params" not in answer.headers

    await until(is_bound)
    free = await client.post(URL, json={**asked, "tools": [TOOL]})
    assert free.headers["farm-ignored-params"] == "thinking.budget_tokens"


async def test_a_single_call_is_one_at_most(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    worker.script = Script(choices=[['<tool_call>{"name": "f", "arguments": {}}']], stop_string="</tool_call>")
    answer = (await client.post(URL, json=body(tools=[TOOL], tool_choice=choice))).json()
    assert worker.requests[-1].stopping.strings == ("</tool_call>",)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("tool_use", None)
    assert answer["content"][0]["input"] == {}


async def test_tool_choice_none_offers_nothing(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    assert '"name": "f"' not in await prompt_of(client, worker, body(tools=[TOOL], tool_choice={"type": "none"}))


async def test_a_message_can_be_a_job_of_its_own(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    accepted = await client.post("/v1/jobs", json={"kind": "messages", "body": body()})
    assert accepted.status_code == 202, accepted.text
    url = f"/v1/jobs/{accepted.json()['id']}"

    async def is_done() -> bool:
        return bool((await client.get(url)).json()["result"])

    await until(is_done)
    job = (await client.get(url)).json()
    assert (job["kind"], job["result"]["content"][0]["text"]) == ("messages", "Hello, world!")
    events = (await client.get(f"{url}/events")).text
    assert events.startswith("event: message_start\n")
    assert events.endswith('data: {"type":"message_stop"}\n\n')


async def test_refusals_before_the_endpoint_have_the_protocols_shape(start_node: StartNode) -> None:
    server = await start_node(api_key="right", body_limit_bytes=2000)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
        stranger = await client.post(URL, json=body())
        large = await client.post(URL, json=body(system="x" * 3000), headers={"x-api-key": "right"})
        form = await client.post(URL, data={"a": "b"}, headers={"x-api-key": "right"})
        wrong = await client.post(URL, content=b"{", headers={"x-api-key": "right", "content-type": "application/json"})
        nothing = await client.get(f"{URL}/unknown", headers={"x-api-key": "right"})
    answers = (stranger, large, form, wrong, nothing)
    kinds = [answer.json()["error"]["type"] for answer in answers]
    assert [answer.status_code for answer in answers] == [401, 413, 415, 400, 404]
    assert kinds == [
        "authentication_error",
        "request_too_large",
        "invalid_request_error",
        "invalid_request_error",
        "not_found_error",
    ]
    assert all(answer.json()["request_id"] == answer.headers["request-id"] for answer in answers)


async def test_limits_and_outages_have_the_protocols_words(start_node: StartNode, worker: ScriptedWorker) -> None:
    server = await start_node(limit_requests_per_minute=1)
    async with httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
        first, second = [await client.post(URL, json=body()) for _ in range(2)]
        server.drain.begin()
        draining = await client.post(URL, json=body())
    assert first.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert (second.status_code, second.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(second.headers["retry-after"]) > 0
    assert (draining.status_code, draining.json()["error"]["type"]) == (529, "overloaded_error")


async def test_pages_of_models_follow_each_other(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await worker.announce(make_card(name="tiny/other"))
    version = {"anthropic-version": "2023-06-01"}

    async def both_there() -> bool:
        return len((await client.get("/v1/models")).json()["data"]) == 2

    await until(both_there)
    first = (await client.get("/v1/models?limit=1", headers=version)).json()
    rest = (await client.get(f"/v1/models?limit=1&after_id={first['last_id']}", headers=version)).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [first["data"][0]["id"], rest["data"][0]["id"]] == [MODEL, "tiny/other"]
    before = (await client.get(f"/v1/models?before_id={rest['first_id']}", headers=version)).json()
    assert before["data"] == first["data"]
    lost = await client.get("/v1/models?after_id=none", headers=version)
    assert (lost.status_code, lost.json()["type"]) == (400, "error")

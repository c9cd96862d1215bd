"""What /v1/responses honours of tools, items and options, what it refuses by name, and what it lists as ignored."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from tests.api.scripted_farm import (
    CONTEXT_TOKENS,
    MODEL,
    Script,
    ScriptedWorker,
    all_events,
    announce,
    make_card,
    prompt_text,
)

URL = "/v1/responses"
WIDE = make_card(context_tokens=8000)
PATCH = {"type": "custom", "name": "patch", "description": "Edit a file."}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CODEX_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "exec_command",
        "description": "Run a command.",
        "strict": False,
        "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]},
    },
    {**PATCH, "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}},
    {"type": "namespace", "name": "mcp", "description": "More.", "tools": [{**FUNCTION, "name": "look"}]},
    {"type": "web_search", "external_web_access": False},
]


def body(**changes: Any) -> dict[str, Any]:
    """A request."""
    return {"model": MODEL, "input": "Hi", "seed": 1, **changes}


def called(name: str, arguments: Any) -> str:
    """A call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "computer_call_output", "call_id": "c", "output": "x"}]}, "input.0.type"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0.type"),
    ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input.0.name"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output"),
    ({"input": [{"type": "reasoning", "encrypted_content": "farm1.x"}]}, "input.0.encrypted_content"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"n": 2}, "n"),
    ({"background": True, "store": False}, "background"),
    ({"include": ["a.b"]}, "include.0"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools.0.type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{**FUNCTION, "strict": True, "parameters": {"not": {}}}]}, "tools.0.parameters"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}}, "text.format.schema"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"temperature": 3}, "temperature"),
]


@pytest.mark.parametrize(("changes", "param"), REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_its_path(
    client: httpx2.AsyncClient, worker: ScriptedWorker, changes: dict[str, Any], param: str
) -> None:
    answer = await client.post(URL, json=body(**changes))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert worker.requests == []


async def test_what_has_no_effect_is_listed(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await announce(worker, WIDE, client)
    fields = {"text": {"verbosity": "low"}, "reasoning": {"summary": "auto"}, "prompt_cache_key": "k", "unheard_of": 1}
    answer = await client.post(URL, json=body(tools=CODEX_TOOLS, include=["reasoning.encrypted_content"], **fields))
    assert answer.headers["farm-ignored-params"].split(", ") == [
        "unheard_of",
        "text.verbosity",
        "reasoning.summary",
        "prompt_cache_key",
        "tools.3",
    ]
    assert answer.json()["tools"] == CODEX_TOOLS


async def test_conversations_and_compaction_are_refused_clearly(client: httpx2.AsyncClient) -> None:
    for path in ("/v1/conversations", "/v1/conversations/conv_1", "/v1/responses/compact"):
        answer = await client.post(path, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unsupported_endpoint")


async def test_a_custom_tool_gets_plain_text(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    text = called("patch", {"input": 'a\n"b"'})
    worker.script = Script(choices=[[text[:40], text[40:]]])
    first = (await client.post(URL, json=body(tools=[PATCH]))).json()
    call = first["output"][0]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "patch", 'a\n"b"')
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done"}
    await client.post(URL, json=body(tools=[PATCH], input=[output], previous_response_id=first["id"]))
    assert json.dumps('a\n"b"') in prompt_text(worker.requests[1])
    events = [json.loads(e.data) for e in await all_events(client, "POST", URL, json=body(tools=[PATCH], stream=True))]
    kinds = [event["type"].removeprefix("response.") for event in events[2:-1]]
    assert kinds == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]


async def test_a_regex_binds_a_custom_tools_input(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    tool = {**PATCH, "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}}
    await client.post(URL, json=body(tools=[tool], tool_choice={"type": "custom", "name": "patch"}))
    grammar = worker.requests[0].grammar
    assert grammar is not None
    assert json.dumps("^([0-9]+)$") in grammar.text


async def test_a_lark_grammar_binds_a_custom_tools_input_where_calls_write_plain_text(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    lark = {"type": "grammar", "syntax": "lark", "definition": "start: line+\nline: /[a-z]+/ LF\n%import common.LF"}
    tools = [{**PATCH, "name": name, "format": lark} for name in ("one", "two")]
    await announce(worker, replace(WIDE, tool_format="qwen3_coder"), client)
    answer = await client.post(URL, json=body(tools=tools))
    assert (answer.status_code, "farm-ignored-params" in answer.headers) == (200, False), answer.text
    grammar = worker.requests[0].grammar
    assert grammar is not None
    assert grammar.text.count("%import common.LF") == 1
    wrong = {**PATCH, "format": {**lark, "definition": "start: nobody"}}
    refused = await client.post(URL, json=body(tools=[wrong]))
    assert refused.json()["error"]["param"] == "tools.0.format.definition"
    beyond = {**PATCH, "format": {**lark, "definition": 'start: "a" b\nb: %json {"type": "string"}'}}
    refused = await client.post(URL, json=body(tools=[beyond]))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools.0.format")


async def test_a_lark_grammar_binds_inside_json_too_unless_it_contains_itself(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    await announce(worker, WIDE, client)
    flat, deep = (
        {**PATCH, "name": name, "format": {"type": "grammar", "syntax": "lark", "definition": definition}}
        for name, definition in (("flat", 'start: ("a" LF)+\n%import common.LF'), ("deep", 'start: "(" start? ")"'))
    )
    both = await client.post(URL, json=body(tools=[flat, deep]))
    assert (both.status_code, both.headers["farm-ignored-params"]) == (200, "tools.1.format"), both.text
    alone = await client.post(URL, json=body(tools=[deep]))
    assert (alone.status_code, alone.headers["farm-ignored-params"]) == (200, "tools.0.format"), alone.text
    bound, free = worker.requests
    assert bound.grammar is not None
    assert r'"pattern": "^(?:(?:(?:a(?:\\n)))+)$"' in bound.grammar.text
    assert free.grammar is None


async def test_tools_of_a_namespace_keep_it(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await announce(worker, WIDE, client)
    worker.script = Script(choices=[[called("mcp__look", {})]])
    first = (await client.post(URL, json=body(tools=CODEX_TOOLS))).json()
    call = first["output"][0]
    assert (call["name"], call["namespace"]) == ("look", "mcp")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "seen"}
    await client.post(URL, json=body(tools=CODEX_TOOLS, input=[output], previous_response_id=first["id"]))
    assert '{"name": "mcp__look", "arguments": {}}' in prompt_text(worker.requests[1])


async def test_only_allowed_tools_are_offered(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    answer = await client.post(URL, json=body(tools=[FUNCTION, {**FUNCTION, "name": "g"}], tool_choice=allowed))
    assert answer.json()["tool_choice"] == allowed
    grammar = worker.requests[0].grammar
    assert grammar is not None
    assert '\\"g\\"' in grammar.text
    assert '\\"f\\"' not in grammar.text


async def test_thoughts_are_sealed_and_come_back(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await announce(
        worker, make_card(chat_template="{% for m in messages %}{{ m.reasoning_content }}|{% endfor %}"), client
    )
    worker.script = Script(choices=[["<think>\nI wonder.\n</think>\n\nYes."]])
    first = (await client.post(URL, json=body(store=False, include=["reasoning.encrypted_content"]))).json()
    thought = {key: first["output"][0][key] for key in ("type", "id", "summary", "encrypted_content")}
    items = [{"role": "user", "content": "Hi"}, thought, first["output"][1], {"role": "user", "content": "Why?"}]
    await client.post(URL, json=body(store=False, input=items))
    assert prompt_text(worker.requests[-1]) == "|I wonder.||"


async def test_instructions_and_developers_speak_in_one_message(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Two."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Three."}]},
    ]
    await client.post(URL, json=body(instructions="One.", input=items))
    assert prompt_text(worker.requests[0]).startswith("<|im_start|>system\nOne.\n\nTwo.<|im_end|>\n<|im_start|>user\n")


async def test_a_conversation_that_is_too_long_is_cut_where_a_user_speaks(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    items = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"{i:02} " + "x" * 40} for i in range(15)]
    asked = body(instructions="Be kind.", input=items, max_output_tokens=100)
    refused = await client.post(URL, json=asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = await client.post(URL, json=asked | {"truncation": "auto"})
    assert answer.status_code == 200, answer.text
    text = prompt_text(worker.requests[0])
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
    assert "14 xxx" in text
    assert answer.json()["usage"]["input_tokens"] + 100 <= CONTEXT_TOKENS
    counted = await client.post("/v1/responses/input_tokens", json=asked)
    assert counted.json()["input_tokens"] > CONTEXT_TOKENS


async def test_an_agent_that_keeps_its_own_history_comes_to_its_end(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    """The way Codex works: nothing is stored, every turn sends all items again."""
    await announce(worker, WIDE, client)
    history: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": "List the files."}]
    turns = [called("exec_command", {"cmd": "ls"}), called("apply_patch", {"input": "*** Begin"}), "Done."]
    for text in turns:
        worker.script = Script(choices=[[text[:9], text[9:]]])
        asked = body(
            input=history, tools=CODEX_TOOLS, tool_choice="auto", parallel_tool_calls=False, store=False, stream=True
        )
        asked |= {"instructions": "You are an agent.", "include": ["reasoning.encrypted_content"]}
        events = [json.loads(event.data) for event in await all_events(client, "POST", URL, json=asked)]
        assert events[-1]["type"] == "response.completed"
        for event in events:
            if event["type"] == "response.output_item.done":
                item = event["item"]
                history.append(item)
                if "call_id" in item:
                    kind = f"{item['type']}_output"
                    history.append({"type": kind, "call_id": item["call_id"], "output": "ok"})
    assert [item["type"] for item in history] == [
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "message",
    ]
    assert prompt_text(worker.requests[1]).startswith(prompt_text(worker.requests[0]).rpartition("{")[0][:40])

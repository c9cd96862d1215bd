"""Fields that bind an answer's form become the job's grammar, behind the model's thoughts where it thinks."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from api.openai.guiding import Binding, behind_thinking, choice_grammar, schema_grammar
from scheduler.grammars import Grammar, GrammarKind
from scheduler.prompts import PromptFormat
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, Script, ScriptedWorker, all_events, chat_body, make_card
from tests.waiting import PATIENCE_S
from tests.workers.engine.guided_walks import COMPILER, TOKENIZER
from workers.engine import Grammar as EngineGrammar
from workers.engine import GrammarKind as EngineGrammarKind
from workers.engine.guided import GuideFailed

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
PROMPTS = PromptFormat(make_card(), TOKENIZER.to_str())
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def fits(grammar: Grammar, text: str) -> bool:
    """Does the demo model's tokenizer spell a whole text of this grammar?"""
    guide = COMPILER.compile(EngineGrammar(EngineGrammarKind(grammar.kind), grammar.text))
    try:
        guide.restore(TOKENIZER.encode(text, add_special_tokens=False).ids)
    except GuideFailed:
        return False
    return guide.may_end


def schema_format(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A response_format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(GrammarKind.JSON_OBJECT)),
        ({"response_format": schema_format(NUMBER)}, schema_grammar(NUMBER)),
        ({"response_format": schema_format(NUMBER, strict=True)}, schema_grammar(NUMBER)),
        ({"guided_json": NUMBER}, schema_grammar(NUMBER)),
        ({"guided_json": json.dumps(NUMBER)}, schema_grammar(NUMBER)),
        ({"guided_regex": "a|b"}, Grammar(GrammarKind.REGEX, "a|b")),
        ({"guided_choice": ["yes", "n.o"]}, Grammar(GrammarKind.REGEX, r"yes|n\.o")),
        ({"guided_grammar": 'start: "a"'}, Grammar(GrammarKind.LARK, 'start: "a"')),
        ({"structured_outputs": {"json": NUMBER}}, schema_grammar(NUMBER)),
        ({"structured_outputs": {"regex": "a|b"}}, Grammar(GrammarKind.REGEX, "a|b")),
        ({"structured_outputs": {"choice": ["a"]}}, Grammar(GrammarKind.REGEX, "a")),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar(GrammarKind.LARK, 'start: "a"')),
        ({"structured_outputs": {"json_object": True}}, Grammar(GrammarKind.JSON_OBJECT)),
    ],
)
async def test_a_form_reaches_the_job(
    start_node: StartNode, worker: ScriptedWorker, fields: dict[str, Any], grammar: Grammar | None
) -> None:
    await worker.announce(make_card(think_start=None, think_end=None))
    async with httpx2.AsyncClient(base_url=(await start_node()).url, timeout=PATIENCE_S) as client:
        response = await client.post(CHAT, json=chat_body(**fields))
        assert response.status_code == 200, response.text
        assert worker.requests[-1].grammar == grammar
        assert worker.requests[-1].params()["grammar"] == (grammar.kind if grammar else None)
        if "response_format" not in fields:
            body = {"model": MODEL, "prompt": "Hi", **fields}
            assert (await client.post(COMPLETIONS, json=body)).status_code == 200
            assert worker.requests[-1].grammar == grammar


async def test_an_engine_without_grammars_is_refused_at_the_door(start_node: StartNode, worker: ScriptedWorker) -> None:
    await worker.announce(make_card(obeys_grammars=False))
    async with httpx2.AsyncClient(base_url=(await start_node()).url, timeout=PATIENCE_S) as client:
        response = await client.post(CHAT, json=chat_body(response_format={"type": "json_object"}))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "response_format", "unsupported_parameter")
    assert "scripted" in error["message"]


async def test_what_only_the_engine_finds_wrong_is_the_callers_error_too(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    worker.script = Script(choices=[["x"]], fail={"error_code": "invalid_request", "error": "no text fits the grammar"})
    response = await client.post(CHAT, json=chat_body(response_format={"type": "json_object"}))
    expected = {
        "message": "no text fits the grammar",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
    }
    assert (response.status_code, response.json()) == (400, {"error": expected})
    events = await all_events(client, "POST", CHAT, json=chat_body(stream=True))
    assert json.loads(events[-1].data) == {"error": expected}


@pytest.mark.parametrize("binding", [schema_grammar(NUMBER), Grammar(GrammarKind.JSON_OBJECT), choice_grammar(["a/b"])])
@pytest.mark.parametrize(
    ("prompt", "before", "never"),
    [
        (CLOSED, [""], ["<think>\nhm\n</think>\n\n", "hm</think>"]),
        ("<|im_start|>assistant\n", ["", "<think>\nI </thin\n</think>\n\n", "<think></think>"], ["hm</think>"]),
        ("<|im_start|>assistant\n<think>\n", ["hm\n</think>\n\n", "</think>"], ["", "<think>x</think>"]),
    ],
)
def test_a_model_may_think_before_its_form_begins(
    binding: Grammar, prompt: str, before: list[str], never: list[str]
) -> None:
    found = behind_thinking(Binding("x", binding), make_card(), PROMPTS, prompt)
    assert found is not None
    grammar = found.grammar
    answer = "a/b" if binding.kind is GrammarKind.REGEX else '{"n": 5}'
    assert all(fits(grammar, f"{thought}{answer}") for thought in before)
    assert not any(fits(grammar, f"{thought}{answer}") for thought in never)
    assert not fits(grammar, f"{before[-1]}no such form")


def test_markers_that_are_text_bound_thoughts_as_well() -> None:
    card = make_card(think_start="[[think", think_end="think]]")
    found = behind_thinking(Binding("x", schema_grammar(NUMBER)), card, PROMPTS, "assistant\n")
    assert found is not None
    grammar = found.grammar
    assert fits(grammar, '[[think of [1] and think] think]]\n{"n": 5}')
    assert fits(grammar, '{"n": 5}')
    assert not fits(grammar, '[[think of it {"n": 5}')

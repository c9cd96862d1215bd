"""Calls that are asked for come, with arguments of their schema, in the words that the model was taught."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from api.openai.argument_grammar import OfferedFunction
from api.openai.call_grammar import CallChoice, call_binding
from api.openai.guiding import Binding, schema_grammar, thinking_rules
from api.openai.schemas import FunctionDefinition
from scheduler.grammars import Grammar, GrammarKind, complaint
from tests.api.conftest import StartNode
from tests.api.scripted_farm import ScriptedWorker, chat_body, make_card
from tests.api.test_guiding import CHAT, CLOSED, NUMBER, PROMPTS, fits
from tests.waiting import PATIENCE_S

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string"}},
}
ODD = {"type": "object", "properties": {"x": {"not": {}}}}
OPEN = "<|im_start|>assistant\n"
ULM = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
TOWN = ULM.replace("city", "town")
TIME = '<tool_call>\n{"name": "ti\\"me", "arguments": {}}\n</tool_call>'


def functions(*, strict: bool = False) -> list[OfferedFunction]:
    """Two functions, the second with an odd name and no parameters."""
    weather = FunctionDefinition(name="weather", parameters=CITY, strict=strict)
    return [OfferedFunction("tools.0", weather), OfferedFunction("tools.1", FunctionDefinition(name='ti"me'))]


def bound(prompt: str = CLOSED, *, answer: Grammar | None = None, card: Any = None, **choice: Any) -> Grammar:
    """The grammar of an answer."""
    card = card or make_card()
    asked = CallChoice(**{"functions": functions(), "forced": False, "single": False, **choice})
    grammar = call_binding(
        asked, Binding("x", answer) if answer else None, card, PROMPTS, prompt, thinking_rules(card, PROMPTS, prompt)
    ).grammar
    assert complaint(grammar) is None
    return grammar


def test_a_forced_answer_is_calls_and_nothing_else() -> None:
    grammar = bound(forced=True)
    assert all(fits(grammar, text) for text in (ULM, TIME, f"{ULM}\n{TIME}\n{ULM}"))
    assert not any(fits(grammar, text) for text in ("", "Sure.", TOWN, f"{ULM} bye", "<tool_call>\n{}\n</tool_call>"))


def test_a_single_call_is_one() -> None:
    grammar = bound(forced=True, single=True)
    assert fits(grammar, ULM)
    assert not fits(grammar, f"{ULM}\n{TIME}")


def test_thoughts_may_come_before_a_forced_call() -> None:
    grammar = bound(OPEN, forced=True)
    assert fits(grammar, f"<think>\nWhich city?\n</think>\n\n{ULM}")
    assert fits(grammar, ULM)
    assert not fits(grammar, "<think>\nWhich city?\n</think>\n\nUlm")


@pytest.mark.parametrize("prompt", [CLOSED, OPEN])
def test_an_answer_with_strict_tools_may_say_anything_but_calls_that_do_not_fit(prompt: str) -> None:
    grammar = bound(prompt, functions=functions(strict=True))
    good = ("", "Hello.", ULM, f"Sure.\n{ULM}", f"{ULM}\n{TIME}", f"{ULM}\nDone. 1 < 2")
    assert all(fits(grammar, text) for text in good)
    assert not any(fits(grammar, text) for text in (TOWN, f"Sure.\n{TOWN}", ULM.replace("weather", "nobody")))


def test_thoughts_that_a_model_opens_itself_may_come_before_a_call_of_strict_tools() -> None:
    """Their marker is a special token here, which is no text."""
    grammar = bound(OPEN, functions=functions(strict=True))
    assert fits(grammar, f"<think>Which city?</think>\n\n{ULM}")
    assert not fits(grammar, f"<think>Which city?</think>\n\n{TOWN}")


def test_markers_that_are_text_bind_as_well() -> None:
    card = make_card(tool_call_start="[TOOL]", tool_call_end="[END]", think_start=None, think_end=None)

    def written(text: str) -> str:
        return text.replace("<tool_call>", "[TOOL]").replace("</tool_call>", "[END]")

    strict = bound(card=card, functions=functions(strict=True))
    assert all(fits(strict, written(text)) for text in ("", "Hello [there].", ULM, f"Sure.\n{ULM}", f"{ULM}\nDone."))
    assert not any(fits(strict, written(text)) for text in (TOWN, f"Sure.\n{TOWN}"))
    assert fits(bound(card=card, forced=True), written(f"{ULM}\n{TIME}"))


def test_an_answer_of_a_bound_form_may_be_calls_instead() -> None:
    grammar = bound(answer=schema_grammar(NUMBER))
    assert all(fits(grammar, text) for text in ('{"n": 5}', ULM, f"{ULM}\n{TIME}"))
    assert not any(fits(grammar, text) for text in ("five", f'{{"n": 5}}{ULM}', TOWN))


def test_a_schema_that_cannot_be_followed_leaves_any_object_unless_it_is_strict() -> None:
    odd = OfferedFunction("tools.0", FunctionDefinition(name="weather", parameters=ODD))
    assert fits(bound(forced=True, functions=[odd]), TOWN)


@pytest.mark.parametrize(
    ("fields", "single"),
    [
        ({"tool_choice": "required"}, False),
        ({"tool_choice": "required", "parallel_tool_calls": False}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, True),
    ],
)
async def test_a_choice_reaches_the_job_and_ends_with_its_grammar(
    client: httpx2.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], single: bool
) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("e", "f")]
    response = await client.post(CHAT, json=chat_body(tools=tools, **fields))
    assert response.status_code == 200, response.text
    [request] = worker.requests
    assert request.grammar is not None
    assert request.grammar.kind is GrammarKind.LARK
    assert ("call_1" in request.grammar.text) is (fields["tool_choice"] == "required")
    assert ('("\\n" call)*' not in request.grammar.text) is single
    assert request.stopping.strings == ()


async def test_one_call_at_most_ends_the_answer(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    await client.post(CHAT, json=chat_body(tools=tools, parallel_tool_calls=False))
    assert worker.requests[-1].stopping.strings == ("</tool_call>",)


@pytest.mark.parametrize("changes", [{"obeys_grammars": False}, {"tool_format": "kimi_k3"}])
async def test_a_model_whose_calls_have_no_grammar_cannot_be_forced(
    start_node: StartNode, worker: ScriptedWorker, changes: dict[str, Any]
) -> None:
    await worker.announce(make_card(**changes))
    tools = [{"type": "function", "function": {"name": "f", "strict": True}}]
    async with httpx2.AsyncClient(base_url=(await start_node()).url, timeout=PATIENCE_S) as client:
        free = await client.post(CHAT, json=chat_body(tools=tools))
        response = await client.post(CHAT, json=chat_body(tools=tools, tool_choice="required"))
    assert free.headers["farm-ignored-params"] == "tools.0.function.strict"
    assert worker.requests[-1].grammar is None
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "tool_choice", "unsupported_parameter")
    assert "json_tools" in error["message"]

"""Options of chat requests that change who may be called, how long a model thinks, or nothing."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from api.openai.guiding import behind_thinking
from scheduler.grammars import complaint
from scheduler.prompts import PromptFormat
from tests.api.conftest import StartNode
from tests.api.scripted_farm import ScriptedWorker, chat_body, make_card, prompt_text
from tests.api.test_guiding import CHAT, NUMBER, fits, schema_format
from tests.waiting import PATIENCE_S
from tests.workers.engine.guided_walks import TOKENIZER, token_of

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("look", "buy")]


def allowing(*names: str, **more: Any) -> dict[str, Any]:
    """OpenAI's tool_choice of type allowed_tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"tools": tools, **more}}


async def test_only_allowed_tools_are_offered(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.post(CHAT, json=chat_body(tools=TOOLS, tool_choice=allowing("look", mode="auto")))
    assert response.status_code == 200, response.text
    assert '"look"' in prompt_text(worker.requests[-1])
    assert '"buy"' not in prompt_text(worker.requests[-1])
    assert worker.requests[-1].grammar is None


async def test_one_of_the_allowed_tools_can_be_required(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await client.post(CHAT, json=chat_body(tools=TOOLS, tool_choice=allowing("buy", mode="required")))
    grammar = worker.requests[-1].grammar
    assert grammar is not None
    assert "buy" in grammar.text
    assert "look" not in grammar.text


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (allowing("sell"), "tool_choice.allowed_tools.tools"),
        (allowing("look", mode="none"), "tool_choice.allowed_tools.mode"),
        (allowing(), "tool_choice.allowed_tools"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        ({"type": "allowed_tools", "allowed_tools": {"tools": [5]}}, "tool_choice.allowed_tools.tools.0.function.name"),
    ],
)
async def test_a_choice_of_tools_that_cannot_be_met_is_refused(
    client: httpx2.AsyncClient, worker: ScriptedWorker, choice: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json=chat_body(tools=TOOLS, tool_choice=choice))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_prediction_is_a_hint_and_listed(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    response = await client.post(CHAT, json=chat_body(prediction={"type": "content", "content": "Hello"}))
    assert response.status_code == 200
    assert response.headers["farm-ignored-params"] == "prediction"


def test_thoughts_end_with_their_budget() -> None:
    mark = next(token for token in ("</think>", "<|im_end|>") if TOKENIZER.token_to_id(token) is not None)
    card = make_card(think_end=mark)
    prompts = PromptFormat(card, TOKENIZER.to_str())
    assert prompts.special_id(mark) == token_of(mark)
    binding = behind_thinking(None, card, prompts, "<think>", budget=3)
    assert binding is not None
    assert complaint(binding.grammar) is None
    assert fits(binding.grammar, f"ab{mark}Any answer.")
    assert fits(binding.grammar, mark)
    assert fits(binding.grammar, f"ab{mark}A call: <tool_call>")  # a special token is no text
    assert not fits(binding.grammar, f"{'z ' * 40}{mark}Any answer.")
    assert behind_thinking(None, card, prompts, f"<think>\n\n{mark}\n\n", budget=3) is None


@pytest.mark.parametrize("changes", [{"think_start": None, "think_end": None}, {"obeys_grammars": False}, {}])
async def test_a_budget_that_cannot_be_enforced_is_refused(
    start_node: StartNode, worker: ScriptedWorker, changes: dict[str, Any]
) -> None:
    await worker.announce(make_card(**changes))
    async with httpx2.AsyncClient(base_url=(await start_node()).url, timeout=PATIENCE_S) as client:
        response = await client.post(CHAT, json=chat_body(thinking_token_budget=5))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (
        400,
        "thinking_token_budget",
        "unsupported_parameter",
    )


async def test_a_budget_and_a_form_bind_one_answer(start_node: StartNode, worker: ScriptedWorker) -> None:
    await worker.announce(make_card(think_end="<|im_end|>"))
    async with httpx2.AsyncClient(base_url=(await start_node()).url, timeout=PATIENCE_S) as client:
        fields = {"thinking_token_budget": 7, "response_format": schema_format(NUMBER)}
        response = await client.post(CHAT, json=chat_body(**fields))
    assert response.status_code == 200, response.text
    grammar = worker.requests[-1].grammar
    assert grammar is not None
    assert "max_tokens=7" in grammar.text
    assert "%json" in grammar.text

"""Text to tokens and back as vLLM's clients ask for it, and what has no model here."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from tests.api.conftest import StartNode
from tests.api.scripted_farm import CONTEXT_TOKENS, MODEL, TOKENIZER, ScriptedWorker, chat_body, make_card, prompt_text
from tests.waiting import PATIENCE_S


async def test_a_prompt_comes_back_from_its_tokens(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "Grüß", "return_token_strs": True})).json()
    ids = TOKENIZER.encode("Grüß").ids
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), CONTEXT_TOKENS)
    assert answer["token_strs"][:2] == ["G", "r"]
    back = await client.post("/detokenize", json={"model": MODEL, "tokens": answer["tokens"]})
    assert back.json() == {"prompt": "Grüß"}


async def test_messages_have_the_tokens_of_their_chat(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = chat_body(tools=tools)
    answer = (await client.post("/tokenize", json=body)).json()
    await client.post("/v1/chat/completions", json=body)
    assert tuple(answer["tokens"]) == worker.requests[-1].prompts[0]
    open_end = (await client.post("/tokenize", json=body | {"add_generation_prompt": False})).json()
    assert TOKENIZER.decode(open_end["tokens"], skip_special_tokens=False) in prompt_text(worker.requests[-1])
    assert answer["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/tokenize", {"messages": [5]}, "messages.0"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
        ("/tokenize", {"model": "nobody", "prompt": "a"}, "model"),
    ],
)
async def test_what_cannot_be_tokenized_is_named(
    client: httpx2.AsyncClient, worker: ScriptedWorker, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param


async def test_a_model_has_to_be_named_where_several_are_served(start_node: StartNode, worker: ScriptedWorker) -> None:
    await worker.announce(make_card(name="other"))
    async with httpx2.AsyncClient(base_url=(await start_node()).url, timeout=PATIENCE_S) as client:
        response = await client.post("/tokenize", json={"prompt": "a"})
    assert response.json()["error"]["param"] == "model"


async def test_moderation_is_refused_clearly(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not moderate"):
        await sdk.moderations.create(input="a text")

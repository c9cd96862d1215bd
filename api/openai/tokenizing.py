"""Text to tokens and back, in vLLM's shapes: POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from api.bodies import JsonResponse, JsonRoute, validated
from api.call import Call, CurrentCall
from api.errors import InvalidParameter
from api.formats import THREAD_CHARS
from api.node import CurrentNode, Node
from api.openai.chat import chat_draft
from api.openai.parameters import check_prompt_tokens
from api.openai.schemas import Body, ChatRequest, TokenIds
from api.serving import serving
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.routing.rules import Asked

router = APIRouter(tags=["openai"], route_class=JsonRoute)

CHAT_FIELDS = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")


class TokenizeRequest(Body):
    """Body of POST /tokenize: a `prompt`, or a chat's `messages` with what its template takes."""

    model: str | None = Field(None, min_length=1, max_length=256, description="May be left out where one is served.")
    prompt: str | None = None
    messages: list[Any] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = Field(None, description="Default: true for a prompt, false for messages.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: str | None = Field(None, min_length=1, max_length=256, description="May be left out where one is served.")
    tokens: TokenIds


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, node: CurrentNode, call: CurrentCall) -> Response:
    """The tokens of a text, or of a chat as its model's template writes it."""
    card, prompts = await _format(node, body.model, call)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParameter("prompt", "Send a prompt or messages, one of them.")
    if body.messages is not None:
        text = await _chat_text(node, body, card, prompts)
    else:
        text = body.prompt or ""
    special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
    if len(text) > THREAD_CHARS:
        ids = await asyncio.to_thread(prompts.encode, text, add_special_tokens=special)
    else:
        ids = prompts.encode(text, add_special_tokens=special)
    pieces = (prompts.token_bytes(token).decode("utf-8", "replace") for token in ids)
    shown = {"token_strs": list(pieces) if body.return_token_strs else None}
    return JsonResponse({"count": len(ids), "max_model_len": card.context_tokens, "tokens": ids} | shown)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, node: CurrentNode, call: CurrentCall) -> Response:
    """The text of tokens, special ones included."""
    card, prompts = await _format(node, body.model, call)
    return JsonResponse({"prompt": prompts.decode(check_prompt_tokens(body.tokens, card, "tokens"))})


async def _format(node: Node, model: str | None, call: Call) -> tuple[ModelCard, PromptFormat]:
    """Raises UnknownModel, Forbidden, QueueUnavailable, InvalidParameter."""
    if model is None:
        cards = await node.catalog.cards()
        if len(cards) != 1:
            raise InvalidParameter("model", f"{len(cards)} models are served; name one.")
        model = cards[0].name
    call.caller.require_model(model)
    asked = Asked(
        model=model,
        lane=call.lane or Lane.NORMAL,
        tenant=call.caller.tenant,
        key=call.caller.key_id,
        session=call.session,
    )
    card = (await serving(node, asked)).card
    return card, await node.formats.get(card)


async def _chat_text(node: Node, body: TokenizeRequest, card: ModelCard, prompts: PromptFormat) -> str:
    fields = {name: value for name in CHAT_FIELDS if (value := getattr(body, name)) is not None}
    draft = chat_draft(validated(ChatRequest, {"model": card.name, **fields}, ""))
    await node.images.load(draft.shown, card)
    text, _ = await draft.prompt(card, prompts)
    return text

"""Anthropic's endpoints."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.answer import answer
from api.anthropic.counting import count_tokens
from api.anthropic.draft import messages_draft
from api.anthropic.schemas import CountRequest, MessagesRequest
from api.bodies import JsonResponse, JsonRoute
from api.call import CurrentCall
from api.node import CurrentNode

router = APIRouter(prefix="/v1/messages", tags=["anthropic"], route_class=JsonRoute)


@router.post("")
async def create_message(body: MessagesRequest, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """A message: one JSON, server-sent events (`stream`), or 202 (`Prefer: respond-async`).

    The headers of /v1/chat/completions steer its job too; `anthropic-version` and `anthropic-beta` may say anything.
    """
    return await answer(node, call, messages_draft(body), request)


@router.post("/count_tokens")
async def count_message_tokens(body: CountRequest, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """How many tokens a request's prompt has for the model that would serve it."""
    request.state.turn.over()
    draft, tokens = await count_tokens(node, body, call)
    headers = {"farm-ignored-params": ", ".join(draft.ignored)} if draft.ignored else {}
    return JsonResponse({"input_tokens": tokens}, headers=headers)

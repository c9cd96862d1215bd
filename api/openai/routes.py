"""OpenAI's inference endpoints."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.answer import answer
from api.bodies import JsonRoute
from api.call import CurrentCall
from api.errors import ApiError
from api.node import CurrentNode
from api.openai.chat import chat_draft
from api.openai.completions import completion_draft
from api.openai.schemas import ChatRequest, CompletionRequest
from api.openai.stored import keeping_of

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)


@router.post("/chat/completions")
async def create_chat_completion(body: ChatRequest, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """A chat completion: one JSON, server-sent events (`stream`), or 202 (`Prefer: respond-async`).

    Headers: `Idempotency-Key`, `Farm-Lane` (high, normal, low), `Farm-Timeout` (seconds), and `Farm-Disconnect`
    (cancel, the default; continue: the job goes on when the client leaves, GET /v1/jobs/{id} has it).
    """
    return await answer(node, call, chat_draft(body), request, keeping_of(body))


@router.post("/completions")
async def create_completion(
    body: CompletionRequest, node: CurrentNode, call: CurrentCall, request: Request
) -> Response:
    """A text completion; the same headers as /v1/chat/completions."""
    return await answer(node, call, completion_draft(body), request)


@router.post("/moderations")
async def create_moderation() -> Response:
    """Refused: no model of the farm judges texts. A made-up verdict would be worse than none."""
    raise ApiError(
        404,
        "This server does not moderate texts; ask a chat model, or another service.",
        code="unsupported_endpoint",
        headers={"x-should-retry": "false"},
    )

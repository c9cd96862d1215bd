"""OpenAI's Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response

from api.answer import Keeping, answer, answer_headers, begin, tick_s
from api.bodies import JsonResponse, JsonRoute
from api.call import CurrentCall
from api.errors import ApiError, InvalidParameter
from api.following import frames_of
from api.job_object import all_of, ended_frames
from api.kinds import check_task
from api.node import CurrentNode, Node
from api.openai.responses.drafting import response_draft
from api.openai.responses.kept import (
    KeptResponse,
    conversation_items,
    earlier_items,
    find_response,
    input_items,
    not_found,
    response_object,
    response_renderer,
    with_references,
)
from api.openai.responses.names import job_of, response_id
from api.openai.responses.schemas import ResponseRequest
from api.serving import asked_of, serving
from api.stream import Answering, EventStream
from scheduler.store import KeptInput

CANCEL_WAIT_S = 5.0
"""A cancelled response's end is waited for so long: a running one ends with its worker's next step."""

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)


@router.post("/responses")
async def create_response(body: ResponseRequest, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """A response: one JSON, server-sent events (`stream`), or in the background; the headers of chat completions."""
    body = await with_references(node, call.caller, body)
    draft = response_draft(body, await earlier_items(node, call.caller, body))
    if body.store is False:
        return await answer(node, call, draft, request)
    previous = job_of(body.previous_response_id) if body.previous_response_id else None
    kept = KeptInput(orjson.dumps(draft.input_items), previous)
    keeping = Keeping(kept, background=bool(body.background))
    if body.background and not body.stream and not call.responds_async:
        job, accepted = await begin(node, call, draft, keeping)
        renderer = await response_renderer(node, accepted.id, accepted.request)
        return JsonResponse(renderer.beginning(), headers=answer_headers(draft, job, accepted))
    return await answer(node, call, draft, request, keeping)


@router.post("/responses/input_tokens")
async def count_input_tokens(body: ResponseRequest, node: CurrentNode, call: CurrentCall) -> Response:
    """How many tokens a response would read, counted with its model's template and tokenizer."""
    body = await with_references(node, call.caller, body)
    draft = response_draft(body, await earlier_items(node, call.caller, body))
    found = await serving(node, asked_of(draft, call))
    check_task(draft.kind, found.card)
    await node.images.load(draft.shown, found.card)
    tokens = await draft.input_tokens(found.card, await node.formats.get(found.card), found.route)
    return JsonResponse({"object": "response.input_tokens", "input_tokens": tokens})


@router.get("/responses/{response}")
async def get_response(
    response: str,
    node: CurrentNode,
    call: CurrentCall,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """A kept response as it is now; or its events (`stream`), from the first or behind number `starting_after`.

    Works on every node, as often as wanted, during the run and after it; leaving never cancels.
    """
    if starting_after is not None and not stream:
        raise InvalidParameter("starting_after", "It needs stream=true.")
    kept = await find_response(node, call.caller, response)
    if not stream:
        return JsonResponse(await response_object(node, kept))
    return await _events(node, kept, -1 if starting_after is None else starting_after)


@router.post("/responses/{response}/cancel")
async def cancel_response(response: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Cancel a response wherever it is; an ended one stays as it is."""
    kept = await find_response(node, call.caller, response)
    if not kept.job.ended:
        await node.queue.cancel(kept.job.id, "request")
        await _end_of(node, kept.job.id)
        kept = await find_response(node, call.caller, response)
    return JsonResponse(await response_object(node, kept))


@router.delete("/responses/{response}")
async def delete_response(response: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Forget a response: its input and its answer. One that runs is cancelled. Later ones lose their beginning."""
    kept = await find_response(node, call.caller, response)
    if not kept.job.ended:
        await node.queue.cancel(kept.job.id, "request")
    if not await node.turns.forget(call.caller.tenant, kept.job.id):
        raise not_found(response)
    return JsonResponse({"id": response, "object": "response", "deleted": True})


@router.get("/responses/{response}/input_items")
async def list_input_items(
    response: str,
    node: CurrentNode,
    call: CurrentCall,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """The items that a response answers, those of the responses before included; in pages."""
    kept = await find_response(node, call.caller, response)
    items: list[dict[str, Any]] = []
    if kept.turn.previous_id is not None:
        items += await conversation_items(node, call.caller, response_id(kept.turn.previous_id), None)
    items += input_items(kept.turn)
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        found = [index for index, item in enumerate(items) if item.get("id") == after]
        if not found:
            raise InvalidParameter("after", f"No input item has the id {after!r}.")
        start = found[0] + 1
    page = items[start : start + limit]
    return JsonResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0].get("id") if page else None,
            "last_id": page[-1].get("id") if page else None,
            "has_more": len(items) > start + limit,
        }
    )


@router.post("/responses/compact", include_in_schema=False)
@router.api_route("/conversations", methods=["GET", "POST"], include_in_schema=False)
@router.api_route("/conversations/{_path:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
async def refuse(_path: str = "") -> Response:
    """What belongs to the API and is not here."""
    message = "This server has no conversations and no compaction; go on with previous_response_id, or send the items."
    raise ApiError(404, message, code="unsupported_endpoint")


async def _events(node: Node, kept: KeptResponse, after: int) -> Response:
    job = kept.job
    if job.request is None:
        raise not_found(response_id(job.id))
    frames = kept.turn.job.frames or (await ended_frames(node, job) if job.ended else None)
    renderer = await response_renderer(node, job.id, job.request)
    renderer.begin_behind(after)
    answering = Answering(
        node=node,
        job_id=job.id,
        renderer=renderer,
        frames=all_of(frames) if frames else frames_of(node, job.id, tick_s=tick_s(node)),
        stays=True,
        meter=None,
    )
    return EventStream(answering, {"farm-job-id": job.id})


async def _end_of(node: Node, job_id: str) -> None:
    """Wait a moment for a job's last frame."""
    waited_s = 0.0
    tick = tick_s(node)
    async for frame in frames_of(node, job_id, tick_s=tick):
        waited_s += tick if frame is None else 0.0
        if waited_s >= CANCEL_WAIT_S:
            return

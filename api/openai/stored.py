"""Stored chat completions (`store: true`): list, get, change their metadata, forget, and what was asked.

The job of a stored chat is durable: its answer is found by the completion's id on every node, for as long as results
are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from api.answer import Keeping
from api.bodies import JsonResponse, JsonRoute
from api.call import CurrentCall
from api.errors import ApiError
from api.job_object import ended_frames, find_job
from api.node import CurrentNode, Node
from api.openai.chat import CHAT_KIND
from api.openai.schemas import Body, ChatRequest
from api.renderers import fresh_renderer
from api.stream import whole_answer
from scheduler.admission import Caller
from scheduler.errors import UnknownJob
from scheduler.frames import End
from scheduler.jobs import JobState
from scheduler.store import KeptInput
from scheduler.turns import Turn

router = APIRouter(prefix="/v1/chat/completions", tags=["openai"], route_class=JsonRoute)

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]

_ID = re.compile(r"chatcmpl-([0-9]{1,9}-[0-9A-Z]{26})")
_METADATA = re.compile(r"metadata\[(.+)\]")


class StoredUpdate(Body):
    """What can be changed of a stored completion."""

    metadata: dict[str, str] | None = Field(None, max_length=16)


def keeping_of(body: ChatRequest) -> Keeping | None:
    """What is kept of a request with `store: true`."""
    if not body.store:
        return None
    messages = [message.model_dump(exclude_unset=True) for message in body.messages]
    return Keeping(KeptInput(orjson.dumps({"messages": messages, "metadata": body.metadata})))


@router.get("")
async def list_completions(
    node: CurrentNode,
    call: CurrentCall,
    request: Request,
    model: str | None = None,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response:
    """Finished completions that were stored, by age; `metadata[key]=value` filters."""
    wanted = {found[1]: value for key, value in request.query_params.items() if (found := _METADATA.fullmatch(key))}
    behind = _job_of(after) if after is not None else None
    data: list[dict[str, Any]] = []
    while len(data) <= limit:
        turns = await node.turns.finished(
            call.caller.tenant, CHAT_KIND, model=model, after_id=behind, ascending=order == "asc", limit=limit + 1
        )
        data += [await _completion(node, call.caller, turn) for turn in turns if _matches(turn, wanted)]
        if len(turns) <= limit:
            break
        behind = turns[-1].job.id
    return JsonResponse(_page(data, limit))


@router.get("/{completion}")
async def get_completion(completion: str, node: CurrentNode, call: CurrentCall) -> Response:
    """A stored completion, as it was answered."""
    return JsonResponse(await _completion(node, call.caller, await _find(node, call.caller, completion)))


@router.post("/{completion}")
async def update_completion(completion: str, body: StoredUpdate, node: CurrentNode, call: CurrentCall) -> Response:
    """Replace its metadata."""
    turn = await _find(node, call.caller, completion)
    kept = orjson.loads(turn.input) | {"metadata": body.metadata}
    if not await node.turns.rewrite(call.caller.tenant, turn.job.id, orjson.dumps(kept)):
        raise _not_found(completion)
    return JsonResponse(await _completion(node, call.caller, await _find(node, call.caller, completion)))


@router.delete("/{completion}")
async def delete_completion(completion: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Forget what was asked and answered."""
    turn = await _find(node, call.caller, completion)
    if not await node.turns.forget(call.caller.tenant, turn.job.id):
        raise _not_found(completion)
    return JsonResponse({"id": completion, "object": "chat.completion.deleted", "deleted": True})


@router.get("/{completion}/messages")
async def list_messages(
    completion: str,
    node: CurrentNode,
    call: CurrentCall,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response:
    """The messages that a stored completion answers."""
    turn = await _find(node, call.caller, completion)
    asked = orjson.loads(turn.input)["messages"]
    messages = [_listed(message, f"{completion}-{index}") for index, message in enumerate(asked)]
    if order == "desc":
        messages.reverse()
    ids = [message["id"] for message in messages]
    if after is not None and after not in ids:
        raise _not_found(after)
    start = 0 if after is None else ids.index(after) + 1
    return JsonResponse(_page(messages[start:], limit))


async def _find(node: Node, caller: Caller, completion: str) -> Turn:
    """Raises ApiError (404) for what is not kept."""
    turn = await node.turns.get(caller.tenant, _job_of(completion))
    if turn is None or turn.job.request is None or turn.job.request.kind != CHAT_KIND:
        raise _not_found(completion)
    return turn


async def _completion(node: Node, caller: Caller, turn: Turn) -> dict[str, Any]:
    """The completion object, with its metadata as it is now. Raises ApiError (404) while there is no answer."""
    job_id, request, frames = turn.job.id, turn.job.request, turn.job.frames
    if not frames:
        try:
            frames = tuple(await ended_frames(node, await find_job(node, caller, job_id)))
        except UnknownJob as error:
            raise _not_found(f"chatcmpl-{job_id}") from error
    end = frames[-1].body if frames else None
    if request is None or not isinstance(end, End) or end.state is not JobState.FINISHED:
        raise _not_found(f"chatcmpl-{job_id}")
    renderer = await fresh_renderer(node, job_id, request)
    for frame in frames[:-1]:
        if not isinstance(frame.body, End):
            renderer.step(frame.body)
    return whole_answer(renderer, end) | {"metadata": orjson.loads(turn.input)["metadata"]}


def _listed(message: Mapping[str, Any], message_id: str) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {**message, "id": message_id, "content": None if parts else content, "content_parts": parts}


def _matches(turn: Turn, wanted: Mapping[str, str]) -> bool:
    metadata = orjson.loads(turn.input)["metadata"] or {}
    return all(metadata.get(key) == value for key, value in wanted.items())


def _page(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    page = found[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, **ends, "has_more": len(found) > limit}


def _job_of(completion: str) -> str:
    """The job of a completion's id. Raises ApiError (404) for what is none of ours."""
    match = _ID.fullmatch(completion)
    if match is None:
        raise _not_found(completion)
    return match[1]


def _not_found(completion: str) -> ApiError:
    message = f"Chat completion {completion!r} not found. Completions are kept with store: true, for a limited time."
    return ApiError(404, message, code="completion_not_found")

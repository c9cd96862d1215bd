"""Kept responses: found by their ids, told as objects, gone on from, and what was said in them as items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from api.errors import ApiError, InvalidParameter, end_error
from api.job_object import KnownJob, ended_frames, find_job
from api.node import Node
from api.openai.responses.conversation import kind_of
from api.openai.responses.names import PREFIXES, item_id, job_of, job_of_item, response_id
from api.openai.responses.rendering import ResponseRenderer
from api.openai.responses.schemas import Item, ResponseRequest
from api.renderers import fresh_renderer
from scheduler.admission import Caller
from scheduler.errors import UnknownJob
from scheduler.frames import Chunk, End, Frame
from scheduler.jobs import JobState
from scheduler.requests import JobRequest
from scheduler.turns import Turn

MOST_REFERENCES = 256


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A stored response: its input, and the job that makes its answer."""

    turn: Turn
    job: KnownJob


async def find_response(node: Node, caller: Caller, response: str) -> KeptResponse:
    """Raises ApiError (404) for what is not kept, RecordUnavailable."""
    job_id = job_of(response)
    turn = await node.turns.get(caller.tenant, job_id) if job_id else None
    if turn is None:
        raise not_found(response)
    try:
        return KeptResponse(turn, await find_job(node, caller, turn.job.id))
    except UnknownJob as error:
        raise not_found(response) from error


def not_found(response: str, param: str | None = None) -> ApiError:
    """Nothing of this tenant is kept under that id."""
    message = f"Response with id {response!r} not found. Responses are kept with store: true, for a limited time."
    return ApiError(404, message, param=param, code="response_not_found")


async def response_object(node: Node, kept: KeptResponse) -> dict[str, Any]:
    """The response as it is now."""
    job, job_id = kept.job, kept.turn.job.id
    request = job.request
    if request is None:
        raise not_found(response_id(job_id))
    renderer = await response_renderer(node, job_id, request)
    if not job.ended:
        return renderer.as_response("queued" if job.state in (JobState.QUEUED, JobState.DELAYED) else "in_progress")
    frames = kept.turn.job.frames or await ended_frames(node, job)
    if not frames or not isinstance(frames[-1].body, End):
        raise not_found(response_id(job_id))
    return _ended(renderer, frames)


def _ended(renderer: ResponseRenderer, frames: Sequence[Frame]) -> dict[str, Any]:
    end = frames[-1].body
    assert isinstance(end, End)
    renderer.step(_joined(frames))
    if end.state is JobState.FINISHED:
        return renderer.ended(end, None)
    error = end_error(end)
    renderer.failure(error)
    return renderer.ended(end, error)


def _joined(frames: Sequence[Frame]) -> tuple[Chunk, ...]:
    """All chunks, so that whatever number of frames there was is one step."""
    return tuple(chunk for frame in frames if not isinstance(frame.body, End) for chunk in frame.body)


async def response_renderer(node: Node, job_id: str, request: JobRequest) -> ResponseRenderer:
    """A renderer that has seen no frame. Raises ApiError (404) for a job of another kind."""
    renderer = await fresh_renderer(node, job_id, request)
    if not isinstance(renderer, ResponseRenderer):
        raise not_found(response_id(job_id))
    return renderer


async def earlier_items(node: Node, caller: Caller, body: ResponseRequest) -> list[Item]:
    """What was said before: the whole conversation up to and with `previous_response_id`. Raises ApiError."""
    if body.previous_response_id is None:
        return []
    items = await conversation_items(node, caller, body.previous_response_id, "previous_response_id")
    return [Item.model_validate(item) for item in items]


async def conversation_items(node: Node, caller: Caller, response: str, param: str | None) -> list[dict[str, Any]]:
    """Inputs and outputs of all responses up to and with this one, in order, with their ids."""
    job_id = job_of(response)
    turns = await node.turns.conversation(caller.tenant, job_id) if job_id else ()
    if not turns or turns[0].previous_id is not None:
        missing = response if not turns else response_id(turns[0].previous_id or "")
        raise not_found(missing, param)
    items: list[dict[str, Any]] = []
    for turn in turns:
        items += input_items(turn)
        items += await _output_items(node, caller, turn, param)
    return items


def input_items(turn: Turn) -> list[dict[str, Any]]:
    """A response's own input, in the form that the API lists."""
    return [_listed(item, turn.job.id, index) for index, item in enumerate(orjson.loads(turn.input))]


async def _output_items(node: Node, caller: Caller, turn: Turn, param: str | None) -> list[dict[str, Any]]:
    job = KnownJob(turn.job.id, None, None, turn.job, None)
    if turn.job.frames is None:  # the projector has not brought it to the record yet, or it runs
        job = await find_job(node, caller, turn.job.id)
        if not job.ended:
            message = f"{response_id(job.id)} is not finished yet; wait for it, or cancel it."
            raise InvalidParameter(param or "response_id", message, code="response_not_finished")
    response = await response_object(node, KeptResponse(turn, job)) if job.ended or turn.job.frames else {}
    output: list[dict[str, Any]] = response.get("output", [])
    return output


def _listed(item: Mapping[str, Any], job_id: str, index: int) -> dict[str, Any]:
    """An input item as it is listed: with type, id and status, its text in parts."""
    kind = item.get("type") or "message"
    listed: dict[str, Any] = {"type": kind, **item}
    if kind in PREFIXES:
        listed["id"] = item.get("id") or item_id(kind, job_id, index, is_input=True)
    if kind != "reasoning":
        listed.setdefault("status", "completed")
    if kind == "message" and isinstance(item.get("content"), str):
        text = {"text": item["content"]}
        if item.get("role") == "assistant":
            listed["content"] = [{"type": "output_text", "annotations": [], **text}]
        else:
            listed["content"] = [{"type": "input_text", **text}]
    return listed


async def with_references(node: Node, caller: Caller, body: ResponseRequest) -> ResponseRequest:
    """The body with its item references replaced by the items of kept responses. Raises ApiError by path."""
    if not isinstance(body.input, list) or all(kind_of(item) != "item_reference" for item in body.input):
        return body
    if sum(kind_of(item) == "item_reference" for item in body.input) > MOST_REFERENCES:
        raise InvalidParameter("input", f"At most {MOST_REFERENCES} item references are looked up; send the items.")
    known: dict[str, dict[str, dict[str, Any]]] = {}
    items = []
    for index, item in enumerate(body.input):
        if kind_of(item) != "item_reference":
            items.append(item)
            continue
        job_id = job_of_item(item.id or "")
        if job_id and job_id not in known:
            known[job_id] = await _items_by_id(node, caller, job_id)
        found = known.get(job_id or "", {}).get(item.id or "")
        if found is None:
            message = f"Item with id {item.id!r} not found. Items are kept with store: true."
            raise ApiError(404, message, param=f"input.{index}.id", code="item_not_found")
        items.append(Item.model_validate(found))
    return body.model_copy(update={"input": items})


async def _items_by_id(node: Node, caller: Caller, job_id: str) -> dict[str, dict[str, Any]]:
    turn = await node.turns.get(caller.tenant, job_id)
    if turn is None:
        return {}
    items = [*input_items(turn), *await _output_items(node, caller, turn, "input")]
    return {item["id"]: item for item in items if item.get("id")}

"""The farm's own endpoints for jobs: submit, list, look, follow (also later and elsewhere), cancel, retry."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.again import run_again
from api.answer import answer_async, tick_s
from api.bodies import JsonResponse, JsonRoute
from api.call import MAX_TIMEOUT_S, CurrentCall
from api.errors import ApiError, InvalidParameter
from api.following import frames_of
from api.job_object import KnownJob, all_of, ended_frames, find_job, job_object, record_object
from api.kinds import draft_of
from api.limit_headers import limit_headers
from api.listing import MAX_PAGE, WantedJobs, after_cursor, cursor_of
from api.node import CurrentNode, Node
from api.renderers import fresh_renderer
from api.stream import Answering, EventStream
from scheduler.errors import UnknownJob
from scheduler.frames import START, Frame, FrameId

MAX_DELAY_S = 30 * 86400.0

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)


class NewJobBody(BaseModel):
    """A job of any protocol: `body` is what its endpoint takes."""

    model_config = ConfigDict(strict=True, extra="forbid")

    kind: str = Field(description="chat.completions, completions, messages, embeddings, rerank or score.")
    body: dict[str, Any]
    not_before: float | None = Field(None, gt=0, description="Begin no earlier than this, in seconds since 1970.")
    timeout_s: float | None = Field(
        None, gt=0, le=MAX_TIMEOUT_S, description="Deadline, counted from `not_before`; Farm-Timeout says the same."
    )


@router.post("", status_code=202)
async def submit_job(new: NewJobBody, node: CurrentNode, call: CurrentCall) -> Response:
    """Accept a job; it is durable once this answers."""
    delay_s = 0.0 if new.not_before is None else max(0.0, new.not_before - time.time())
    if delay_s > MAX_DELAY_S:
        raise InvalidParameter("not_before", "A job can be scheduled up to 30 days ahead.")
    if new.timeout_s is not None:
        call = replace(call, timeout_s=new.timeout_s)
    return await answer_async(node, call, draft_of(new.kind, new.body), delay_s)


@router.get("")
async def list_jobs(
    node: CurrentNode,
    wanted: WantedJobs,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    after: str | None = None,
) -> Response:
    """Jobs of the record, newest first, in pages: `next` is the next page's `after`."""
    jobs = await node.store.jobs(wanted, after=after_cursor(after), limit=limit + 1)
    page, more = jobs[:limit], len(jobs) > limit
    return JsonResponse(
        {
            "object": "list",
            "data": [record_object(job) for job in page],
            "has_more": more,
            "next": cursor_of(page[-1]) if more else None,
        }
    )


@router.get("/{job_id}")
async def get_job(job_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """A job's state, and its result once it has ended."""
    return JsonResponse(await job_object(node, call.caller, job_id))


@router.get("/{job_id}/events")
async def follow_job(
    job_id: str, node: CurrentNode, call: CurrentCall, request: Request, starting_after: str | None = None
) -> Response:
    """The job's answer as server-sent events of its protocol, from the start or behind `Last-Event-ID`.

    Works on every node, as often as wanted, during the job and after it; leaving never cancels.
    """
    after = _after(request.headers.get("last-event-id") or starting_after)
    job = await find_job(node, call.caller, job_id)
    frames = await _frames(node, job)
    if frames is None or job.request is None:
        raise UnknownJob(job_id)
    answering = Answering(
        node=node,
        job_id=job_id,
        renderer=await fresh_renderer(node, job_id, job.request),
        frames=frames,
        stays=True,
        meter=None,
    )
    return EventStream(answering, {"farm-job-id": job_id}, after)


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Cancel a job wherever it is; an ended one stays as it is. A running one ends with its worker's next step."""
    job = await find_job(node, call.caller, job_id)
    before = await node.queue.cancel(job_id, "request")
    if before is None and not job.ended:
        raise ApiError(
            503,
            "The job is accepted, but not in the queue yet; try again in a moment.",
            kind="server_error",
            code="not_queued_yet",
            headers={"retry-after": "5", "retry-after-ms": "5000", "x-should-retry": "true"},
        )
    return JsonResponse(await job_object(node, call.caller, job_id))


@router.post("/{job_id}/retry", status_code=202)
async def retry_job(job_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Run an ended job's body once more, as a new async job; a dead one leaves the dead letters."""
    accepted = await run_again(node, call, await find_job(node, call.caller, job_id))
    headers = {"location": f"/v1/jobs/{accepted.id}", "farm-job-id": accepted.id, **limit_headers(accepted.standing)}
    return JsonResponse(await job_object(node, call.caller, accepted.id), status_code=202, headers=headers)


async def _frames(node: Node, job: KnownJob) -> AsyncGenerator[Frame | None, None] | None:
    """Where a job's frames come from: an ended job's are all there (None: kept no more)."""
    if not job.ended:
        return frames_of(node, job.id, tick_s=tick_s(node))
    frames = await ended_frames(node, job)
    return all_of(frames) if frames else None


def _after(text: str | None) -> FrameId:
    """Read `Last-Event-ID`. Raises InvalidParameter."""
    if not text:
        return START
    try:
        return FrameId.parse(text)
    except ValueError as error:
        raise InvalidParameter("Last-Event-ID", f"{text!r} is no event id of this server.") from error

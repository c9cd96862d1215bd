"""One inference request to its answer: server-sent events, one JSON, or 202 with a job to come back to."""

from __future__ import annotations

import math
from contextlib import aclosing, suppress
from dataclasses import replace

from fastapi import Request, Response

from api.bodies import JsonResponse
from api.call import Call
from api.departure import Departure
from api.draft import Draft
from api.following import frames_of
from api.job_object import job_object
from api.limit_headers import limit_headers
from api.node import Node
from api.renderers import fresh_renderer
from api.stream import TICK_S, Answering, ClientLeft, EventStream, Frames, collect
from api.submission import Accepted, accept, prepare, submit
from scheduler.errors import QueueUnavailable
from scheduler.frames import End
from scheduler.queue import NewJob

CLIENT_CLOSED_REQUEST = 499
"""Nobody sees this status but the log (nginx's word for it)."""


async def answer(node: Node, call: Call, draft: Draft, request: Request) -> Response:
    """Serve a validated request. Raises ApiError and the core's errors."""
    if call.responds_async:
        request.state.turn.over()
        return await answer_async(node, call, draft)
    meter = node.metrics.meter(draft.model)
    job = await prepare(node, draft, call, durable=False)
    accepted = await submit(node, job, call.caller.limits)
    await request.state.turn.step_aside()
    frames = frames_of(node, accepted.id, resubmission=accepted.job, expected=accepted.backlog, tick_s=tick_s(node))
    answering = Answering(
        node=node,
        job_id=accepted.id,
        renderer=await fresh_renderer(node, accepted.id, accepted.request),
        frames=_settling(node, job, frames) if job.budget else frames,
        stays=call.stays or accepted.again,
        linger_s=call.linger_s,
        meter=meter,
    )
    headers = _headers(draft, job, accepted)
    if draft.streamed:
        return EventStream(answering, headers)
    async with Departure(request.receive) as departure:
        try:
            return JsonResponse(await collect(answering, departure), headers=headers)
        except ClientLeft:
            return Response(status_code=CLIENT_CLOSED_REQUEST)


async def answer_async(node: Node, call: Call, draft: Draft, delay_s: float = 0.0) -> Response:
    """Commit the job, to begin in `delay_s`; answer 202 with its place. Raises ApiError and the core's errors."""
    job = await prepare(node, draft, call, durable=True)
    if delay_s:
        delay_ms = math.ceil(delay_s * 1000)
        job = replace(job, delay_ms=delay_ms, deadline_ms=job.deadline_ms and job.deadline_ms + delay_ms)
    accepted = await accept(node, job, call.caller.limits)
    headers = {"location": f"/v1/jobs/{accepted.id}", "preference-applied": "respond-async"}
    headers |= _headers(draft, job, accepted)
    return JsonResponse(await job_object(node, call.caller, accepted.id), status_code=202, headers=headers)


async def _settling(node: Node, job: NewJob, frames: Frames) -> Frames:
    """The frames of a job with limits, which is settled before its caller sees the end, and perhaps asks again."""
    async with aclosing(frames):
        async for frame in frames:
            if frame is not None and isinstance(frame.body, End):
                with suppress(QueueUnavailable):  # then the scheduler settles it
                    await node.limiter.settle(node.queue.shard_of(job.id))
            yield frame


def tick_s(node: Node) -> float:
    """How long a follower waits in silence."""
    return min(TICK_S, node.settings.keepalive_s)


def _headers(draft: Draft, job: NewJob, accepted: Accepted) -> dict[str, str]:
    headers = {"farm-job-id": accepted.id, "farm-lane": job.lane.value, **limit_headers(accepted.standing)}
    if draft.ignored:
        headers["farm-ignored-params"] = ", ".join(draft.ignored)
    return headers

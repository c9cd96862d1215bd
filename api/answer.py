"""One inference request to its answer: server-sent events, one JSON, or 202 with a job to come back to."""

from __future__ import annotations

import math
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from fastapi import Request, Response

from api.bodies import JsonResponse
from api.call import Call
from api.departure import Departure
from api.draft import Draft
from api.errors import ApiError
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
from scheduler.store import KeptInput

CLIENT_CLOSED_REQUEST = 499
"""Nobody sees this status but the log (nginx's word for it)."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """A request whose input and answer are kept; in the `background` nobody has to wait for the answer."""

    input: KeptInput
    background: bool = False


async def answer(node: Node, call: Call, draft: Draft, request: Request, keeping: Keeping | None = None) -> Response:
    """Serve a validated request. Raises ApiError and the core's errors."""
    if call.responds_async:
        request.state.turn.over()
        return await answer_async(node, call, draft, keeping=keeping)
    meter = node.metrics.meter(draft.model)
    job, accepted = await begin(node, call, draft, keeping)
    await request.state.turn.step_aside()
    resubmission = None if job.durable else accepted.job  # the record's relay knows a durable one
    frames = frames_of(node, accepted.id, resubmission=resubmission, expected=accepted.backlog, tick_s=tick_s(node))
    answering = Answering(
        node=node,
        job_id=accepted.id,
        renderer=await fresh_renderer(node, accepted.id, accepted.request),
        frames=_settling(node, job, frames) if job.budget else frames,
        stays=call.stays or accepted.again or (keeping is not None and keeping.background),
        linger_s=call.linger_s,
        meter=meter,
    )
    headers = answer_headers(draft, job, accepted)
    if draft.streamed:
        return EventStream(answering, headers)
    async with Departure(request.receive) as departure:
        try:
            return JsonResponse(await collect(answering, departure), headers=headers)
        except ClientLeft:
            return Response(status_code=CLIENT_CLOSED_REQUEST)


async def begin(node: Node, call: Call, draft: Draft, keeping: Keeping | None) -> tuple[NewJob, Accepted]:
    """The job of a request, taken on; one that keeps something is committed first. Raises what `answer` raises."""
    if keeping is None:
        job = await prepare(node, draft, call, durable=False)
        return job, await submit(node, job, call.caller.limits)
    job = await prepare(node, draft, call, durable=True, awaited=not keeping.background)
    accepted = await accept(node, job, call.caller.limits, keeping.input)
    if not accepted.again:
        return job, accepted
    earlier = await node.store.durable_job(accepted.id)  # the same key has a body of its own
    if earlier is None or earlier.request is None:
        raise ApiError(
            409, f"The result of job {accepted.id} (same Idempotency-Key) is no longer kept.", code="conflict"
        )
    return job, replace(accepted, request=earlier.request)


async def answer_async(
    node: Node, call: Call, draft: Draft, delay_s: float = 0.0, keeping: Keeping | None = None
) -> Response:
    """Commit the job, to begin in `delay_s`; answer 202 with its place. Raises ApiError and the core's errors."""
    job = await prepare(node, draft, call, durable=True)
    if delay_s:
        delay_ms = math.ceil(delay_s * 1000)
        job = replace(job, delay_ms=delay_ms, deadline_ms=job.deadline_ms and job.deadline_ms + delay_ms)
    accepted = await accept(node, job, call.caller.limits, keeping.input if keeping else None)
    headers = {"location": f"/v1/jobs/{accepted.id}", "preference-applied": "respond-async"}
    headers |= answer_headers(draft, job, accepted)
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


def answer_headers(draft: Draft, job: NewJob, accepted: Accepted) -> dict[str, str]:
    """What every answer says of its job."""
    headers = {"farm-job-id": accepted.id, "farm-lane": job.lane.value, **limit_headers(accepted.standing)}
    if draft.ignored:
        headers["farm-ignored-params"] = ", ".join(draft.ignored)
    return headers

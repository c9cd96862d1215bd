"""One inference request to its answer: server-sent events, one JSON, or 202 with a job to come back to."""

from __future__ import annotations

from fastapi import Request, Response

from api.bodies import JsonResponse
from api.call import Call
from api.departure import Departure
from api.draft import Draft
from api.following import frames_of
from api.job_object import job_object
from api.node import Node
from api.renderers import fresh_renderer
from api.stream import TICK_S, Answering, ClientLeft, EventStream, collect
from api.submission import Accepted, accept, prepare, submit
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
    accepted = await submit(node, job)
    await request.state.turn.step_aside()
    answering = Answering(
        node=node,
        job_id=accepted.id,
        renderer=await fresh_renderer(node, accepted.id, accepted.request),
        frames=frames_of(node, accepted.id, resubmission=accepted.job, expected=accepted.backlog, tick_s=tick_s(node)),
        stays=call.stays or accepted.job is None,
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


async def answer_async(node: Node, call: Call, draft: Draft) -> Response:
    """Commit the job, answer 202 with its place. Raises ApiError and the core's errors."""
    job = await prepare(node, draft, call, durable=True)
    job_id = await accept(node, job)
    headers = {"location": f"/v1/jobs/{job_id}", "preference-applied": "respond-async"}
    headers |= _headers(draft, job, Accepted(job_id, job.request, job))
    return JsonResponse(await job_object(node, call.caller, job_id), status_code=202, headers=headers)


def tick_s(node: Node) -> float:
    """How long a follower waits in silence."""
    return min(TICK_S, node.settings.keepalive_s)


def _headers(draft: Draft, job: NewJob, accepted: Accepted) -> dict[str, str]:
    headers = {"farm-job-id": accepted.id, "farm-lane": job.lane.value}
    if draft.ignored:
        headers["farm-ignored-params"] = ", ".join(draft.ignored)
    return headers

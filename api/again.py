"""An ended job's body once more, under a new id."""

from __future__ import annotations

from api.call import Call
from api.errors import ApiError
from api.job_object import KnownJob
from api.node import Node
from api.rendering import RenderingNote
from api.submission import ASYNC_KEYS, Accepted, accept
from scheduler.dead_letters import DeadLetters
from scheduler.job_ids import new_job_id
from scheduler.job_images import with_images
from scheduler.jobs import JobState, Lane
from scheduler.queue import NewJob
from scheduler.requests import JobRequest


async def run_again(node: Node, call: Call, job: KnownJob) -> Accepted:
    """Accept the job's request as a new async job; a dead job leaves the dead letters with it, and runs again once.

    Raises ApiError for a job that has not ended or whose body is gone, Forbidden, and what `accept` raises.
    """
    if not job.ended:
        raise ApiError(409, f"Job {job.id} is {job.state}; only ended jobs can be retried.", code="job_not_ended")
    if job.request is None or not job.request.prompts:
        raise ApiError(409, f"The body of job {job.id} is no longer kept; send it again.", code="body_not_kept")
    request = await with_images(node.queue, job.id, job.request)
    if request.lacks_images:
        raise ApiError(409, f"The images of job {job.id} are no longer kept; send it again.", code="body_not_kept")
    accepted = await accept(node, _again(node, job, request, call), call.caller.limits)
    if job.state is JobState.DEAD:
        await DeadLetters(node.queue).discard(job.id)
    return accepted


def _again(node: Node, job: KnownJob, request: JobRequest, call: Call) -> NewJob:
    """The same request, on the same route."""
    record, snapshot, model_asked = job.record, job.snapshot or {}, RenderingNote.of(request.rendering).model
    lane = record.lane if record else Lane(snapshot.get("lane", Lane.NORMAL))
    call.caller.require_model(model_asked)
    return NewJob(
        id=new_job_id(node.settings.shards),
        request=request,
        pool=request.model,
        tenant=call.caller.tenant,
        lane=call.caller.lane(call.lane, lane),
        route=record.route if record else "",
        rule_version=record.rule_version if record else 0,
        routing=record.routing if record else {},
        model_asked=model_asked,
        request_id=call.request_id,
        durable=True,
        deadline_ms=round((call.timeout_s or 0) * 1000),
        cost_tokens=int(snapshot.get("cost", 0)),
        budget=call.caller.budget,
        idempotency_key=f"{ASYNC_KEYS}dead/{job.id}" if job.state is JobState.DEAD else "",
    )
